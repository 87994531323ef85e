"""`clipglot import`: a cache of embeddings computed elsewhere, with the tower that the user names."""

from dataclasses import dataclass, replace

import numpy as np

from ..cache.format import CacheInfo, EncoderInfo, SourceInfo
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.sources.embeddings import open_embeddings
from ..cache.storage.atomic import lock_folder
from ..cache.write.import_embeddings import import_missing, scan_rows
from ..cache.write.plan import plan_cache
from ..cache.write.report import PassReport
from ..distill.errors import DistillError
from ..distill.provenance import encoder_info, require_same_encoder
from ..encoders.image_tower import load_image_tower
from .installed import installed_version
from .output_cache import OutputCache
from .reembed import reembed_imported, tower_name
from .settings.import_embeddings import ImportSettings

NUM_CANDIDATES = 64  # rows, of which a few are embedded again: some images may be gone
BATCH_SIZE = 64  # chunks are whole batches, also where no pass over images follows
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


def import_embeddings(settings: ImportSettings, on_progress: OnProgress = ignore_progress) -> ImportResult:
    """Write a cache from embeddings and captions, or finish one.

    Args:
        settings: the same settings resume.
        on_progress: called with the rows of the stages `read`, `plan` and `import`.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    source = open_embeddings(
        settings.source_info, captions=settings.captions, dataset=settings.dataset, named=settings.keys
    )
    tower = load_image_tower(settings.model, settings.pretrained)
    if source.dim != tower.dim:
        raise DistillError(
            f"{settings.source} has {source.dim} features, {tower_name(tower)} gives {tower.dim}: "
            "pass the --model and --pretrained that made them"
        )
    num = len(source)
    candidates = np.unique(np.linspace(0, max(0, num - 1), NUM_CANDIDATES).astype(np.int64))
    rows, keys = scan_rows(source, candidates, lambda done: on_progress(Progress("read", done, num)))
    cosines = []
    if settings.image_root:
        cosines = reembed_imported(source, tower, settings.image_root, candidates, keys)
    info = replace(source.info, sha256=source.sha256())
    encoder = replace(encoder_info(tower), precision=settings.precision)
    with lock_folder(settings.output):
        output = OutputCache(settings.output)
        existing = output.cache
        if existing:
            _require_same(existing, info, encoder)
        else:
            libraries = {name: installed_version(name) for name in _LIBRARIES}
            plan_cache(
                settings.output,
                source.batches(),
                CacheInfo(state="planning", encoder=encoder, source=info, batch_size=BATCH_SIZE, libraries=libraries),
                on_progress=lambda done: on_progress(Progress("plan", done, num)),
            )
            output.refresh()
        cache = output.require()
        if cache.info.source != info:  # the same files, which have moved
            cache.arrays.write_info(replace(cache.info, source=info))
        report = import_missing(
            cache, source, rows, lambda done, report: on_progress(Progress("import", done, len(rows)))
        )
    return ImportResult(
        cache=cache,
        report=report,
        resumed=existing is not None,
        num_probes=len(cosines),
        min_cosine=min(cosines) if cosines else None,
    )


def _require_same(cache: Cache, source: SourceInfo, encoder: EncoderInfo) -> None:
    """Refuse to go on with a cache of other files, another tower or other settings.

    Raises:
        DistillError: something differs; the message names it.
    """
    planned, path = cache.info, cache.path
    if planned.appended:
        raise DistillError(f"{path} was appended to since: run its `clipglot cache` command instead")
    require_same_encoder(planned.encoder, encoder, f"the tower given for {path}")
    for name in ("kind", "sha256", "image_field", "text_fields"):
        before, now = getattr(planned.source, name), getattr(source, name)
        if before != now:
            raise DistillError(
                f"{path} was made from another source: {name} was {before!r}, now {now!r}; "
                "give the same files and fields to resume, or choose another -o"
            )
    if planned.encoder.precision != encoder.precision:
        raise DistillError(
            f"{path} was begun with --precision {planned.encoder.precision}, now {encoder.precision}: "
            "give the same, or choose another -o"
        )
