"""`clipglot import`: a cache of embeddings that are there, with the tower that the user names, checked if possible."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cache.format import CacheInfo, EncoderInfo, SourceInfo
from ..cache.read.cache import Cache
from ..cache.sources.embeddings import EmbeddingFileSource, open_embeddings
from ..cache.sources.image_root import open_below
from ..cache.sources.source import RejectedImageError
from ..cache.storage.atomic import lock_folder
from ..cache.write.image_decode import ResizeCrop, decode
from ..cache.write.import_embeddings import import_missing, scan_rows
from ..cache.write.plan import is_planned, plan_cache
from ..cache.write.report import PassReport
from ..cache.write.seal import write_info
from ..distill.errors import DistillError
from ..distill.provenance import encoder_info, require_same_encoder
from ..encoders.image_tower import ImageTower, load_image_tower
from .settings.import_embeddings import ImportSettings

NUM_PROBES = 8
NUM_CANDIDATES = 64  # some images may be gone
MIN_COSINE = 0.99  # half precision and another decoder cost some thousandths, another tower nearly all
BATCH_SIZE = 64  # of a pass that never is; chunks are whole batches
_LIBRARIES = ("clipglot", "zarr", "numpy")


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """A sealed cache, and how the tower was checked.

    Attributes:
        cache: sealed.
        report: what was written now.
        resumed: whether it was begun before.
        num_probes: images that were embedded again; 0 without image root.
        min_cosine: their worst cosine with the imported rows, None without probes.
    """

    cache: Cache
    report: PassReport
    resumed: bool
    num_probes: int
    min_cosine: float | None


def import_embeddings(
    settings: ImportSettings, on_progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None
) -> ImportResult:
    """Write a cache from embeddings and captions, or finish one.

    Args:
        settings: the same settings resume.
        on_progress: called with the stage, what is done of it and the total where known.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    source = open_embeddings(
        settings.source_info, captions=settings.captions, dataset=settings.dataset, named=settings.keys
    )
    tower = load_image_tower(settings.model, settings.pretrained)
    if source.dim != tower.dim:
        raise DistillError(
            f"{settings.source} has {source.dim} features, {_named(tower)} gives {tower.dim}: "
            "pass the --model and --pretrained that made them"
        )
    candidates = np.unique(np.linspace(0, max(0, len(source) - 1), NUM_CANDIDATES).astype(np.int64))
    rows, keys = scan_rows(source, candidates, lambda done: on_progress("read", done, len(source)))
    cosines = _probe(source, tower, settings.image_root, candidates, keys) if settings.image_root else []
    info = replace(source.info, sha256=source.sha256())
    encoder = replace(encoder_info(tower), precision=settings.precision)
    with lock_folder(settings.output):
        resumed = _plan(settings.output, source, info, encoder, lambda done: on_progress("plan", done, len(source)))
        cache = Cache(settings.output, read_only=False)
        if cache.info.source != info:  # the same files, elsewhere than when they were planned
            write_info(cache, replace(cache.info, source=info))
        report = import_missing(cache, source, rows, lambda done, report: on_progress("import", done, len(rows)))
    return ImportResult(
        cache=cache,
        report=report,
        resumed=resumed,
        num_probes=len(cosines),
        min_cosine=min(cosines) if cosines else None,
    )


def _plan(
    output: Path,
    source: EmbeddingFileSource,
    info: SourceInfo,
    encoder: EncoderInfo,
    on_progress: Callable[[int], None],
) -> bool:
    """Plan the cache unless it is planned already; returns whether it was, from the same files."""
    if not is_planned(output):
        libraries = {name: version(name) for name in _LIBRARIES}
        planned = CacheInfo(state="planning", encoder=encoder, source=info, batch_size=BATCH_SIZE, libraries=libraries)
        plan_cache(output, source.batches(), planned, on_progress=on_progress)
        return False
    existing = Cache(output).info
    if existing.appended:
        raise DistillError(f"{output} was appended to since: run its `clipglot cache` command instead")
    require_same_encoder(existing.encoder, encoder, f"the tower given for {output}")
    for name in ("kind", "sha256", "image_field", "text_fields"):
        before, now = getattr(existing.source, name), getattr(info, name)
        if before != now:
            raise DistillError(
                f"{output} was made from another source: {name} was {before!r}, now {now!r}; "
                "give the same files and fields to resume, or choose another -o"
            )
    if existing.encoder.precision != encoder.precision:
        raise DistillError(
            f"{output} was begun with --precision {existing.encoder.precision}, now {encoder.precision}: "
            "give the same, or choose another -o"
        )
    return True


def _probe(
    source: EmbeddingFileSource, tower: ImageTower, root: Path, rows: NDArray[np.int64], keys: list[str]
) -> list[float]:
    """The cosines of a few images, embedded again, with their rows.

    Raises:
        DistillError: another tower or another order, or not one image could be read.
    """
    geometry, cosines, reason = ResizeCrop.from_preprocess(tower.preprocess), list[float](), "no such folder"
    for row, key, given in zip(rows.tolist(), keys, source.read(rows), strict=True):
        norm = np.linalg.norm(given)
        if len(cosines) == NUM_PROBES or not (norm > 0 and np.isfinite(norm)):
            continue
        try:
            with open_below(root.resolve(), key) as file:
                features = tower.encode(decode(file, geometry)[None])[0].astype(np.float64)
        except RejectedImageError as rejected:
            reason = f"{key}: {rejected.status.label}"
            continue
        cosines.append(float(features @ given / np.linalg.norm(features) / norm))
        if not cosines[-1] >= MIN_COSINE:
            raise DistillError(
                f"{_named(tower)} embeds {key} to another vector than {source.where(row)} (cosine {cosines[-1]:.4f}, "
                f"expected {MIN_COSINE} at least): pass the --model and --pretrained that made the embeddings, and "
                "captions in the order of their rows"
            )
    if not cosines:
        raise DistillError(
            f"no image could be read below {root} to check the tower ({reason}): pass the --image-root that the "
            "names of images start from, or none to import unchecked"
        )
    return cosines


def _named(tower: ImageTower) -> str:
    return f"{tower.model}{f' / {tower.pretrained}' if tower.pretrained else ''}"
