"""`clipglot verify`: checks of checksums, contents and a sample of images embedded again; repair of a cache."""

import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cache.errors import CacheError, Fault
from ..cache.format import IMPORTED, CacheInfo
from ..cache.location import Location
from ..cache.progress import OnProgress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.read.repair import chunk_to_delete, is_made_by_commands, own_kinds
from ..cache.read.verify import CheckChunks, verify
from ..cache.storage.open import store_at
from ..distill.device import resolve_device
from ..distill.errors import DistillError
from ..distill.provenance import encoder_info
from ..encoders.errors import EncoderError
from ..encoders.image_tower import load_image_tower
from .installed import require_dask
from .reembed import Probes, reembed
from .settings.cache import CacheSettings
from .settings.verify import VerifySettings

SAMPLE = 16


@dataclass(frozen=True, kw_only=True)
class VerifyResult:
    """What was checked and found.

    Attributes:
        cache: as it is now.
        faults: one line each, with what to do.
        marked: chunks that were deleted so that the next pass embeds again what they stand for.
        command: that does so; None if nothing was marked.
        probes: of the images embedded again; none where there are faults, or none were asked for.
        incomplete: whether images were asked for that could not be checked.
    """

    cache: Cache
    faults: list[str]
    marked: list[str]
    command: str | None
    probes: Probes
    incomplete: bool


def verify_cache(
    settings: VerifySettings,
    on_progress: OnProgress = ignore_progress,
    *,
    on_note: Callable[[str], None] = lambda note: None,
) -> VerifyResult:
    """Check a cache; with `settings.repair`, mark what is damaged, so that the next pass embeds it again.

    Args:
        settings: the cache, the sample to embed again, and where its tower and images are now.
        on_progress: called with the chunks of stage `verify`.
        on_note: called with what the user should know of the cluster.

    Raises:
        CacheError: no cache, one whose planning did not finish, or a worker of the cluster that cannot take part.
        DistillError: no such device, no scheduler, or a repair of what no `clipglot cache` command makes.
    """
    cache = Cache(settings.cache, read_only=not settings.repair)
    if settings.repair:
        _require_made_by_commands(cache)
    lock = store_at(settings.cache, read_only=False).lock() if settings.repair else nullcontext()
    with lock, _checks(settings, cache, on_note) as check_chunks:
        faults = verify(cache, on_progress, check_chunks)
        lost = [fault.chunk for fault in faults if fault.chunk]
        marked = cache.arrays.invalidate(lost) if settings.repair else []
    sample = SAMPLE if settings.sample is None else settings.sample
    if faults:
        probes = Probes(not_checked="the faults come first" if sample else None)
    else:
        probes = _probe(cache, settings, sample) if sample else Probes()
    return VerifyResult(
        cache=cache,
        faults=[*(_line(fault, marked) for fault in faults), *probes.changed],
        marked=marked,
        command=cache_command(cache.info, settings.cache) if marked else None,
        probes=probes,
        incomplete=bool(settings.names_a_sample and probes.not_checked),
    )


def _checks(
    settings: VerifySettings, cache: Cache, on_note: Callable[[str], None]
) -> AbstractContextManager[CheckChunks | None]:
    """What checks chunks; None for this process."""
    if settings.scheduler is None:
        return nullcontext()
    require_dask()
    from .dask_verify import checks_on_workers  # imports distributed

    return checks_on_workers(settings, cache, on_note)


def _require_made_by_commands(cache: Cache) -> None:
    if is_made_by_commands(cache.info):
        return
    kinds = {source.kind for source in cache.info.sources}
    if cache.info.merged or IMPORTED in kinds:
        raise DistillError(
            f"{cache.path} was imported, or merged from several caches, so no `clipglot cache` command makes its "
            "chunks: repair what it was made from, and make it again"
        )
    own = ", ".join(own_kinds(cache.info))
    raise DistillError(
        f"{cache.path} comes from a source of your own ({own}), which no `clipglot cache` command reads: delete what "
        "`clipglot verify` names, and run your program again"
    )


def _probe(cache: Cache, settings: VerifySettings, sample: int) -> Probes:
    encoder = cache.info.encoder
    if not cache.info.source.images:
        return Probes(not_checked=f"{cache.path} holds texts, no images")
    pretrained = settings.pretrained if settings.model or settings.pretrained else encoder.pretrained
    device = resolve_device(settings.device)
    try:
        tower = load_image_tower(settings.model or encoder.model, pretrained, device=device)
    except EncoderError as error:
        return Probes(not_checked=f"the image tower is not at hand ({error})")
    if name := encoder.difference(encoder_info(tower)):
        return Probes(not_checked=f"the image tower {tower.model} is not the one that made the cache ({name} differs)")
    try:
        return reembed(cache, tower, sample, image_root=settings.image_root, seed=settings.seed)
    except (CacheError, OSError) as error:
        return Probes(not_checked=str(error))


def cache_command(info: CacheInfo, output: Location) -> str:
    """The `clipglot cache` command that goes on with a cache, as a line for the shell.

    It is that of the first source, or of the last with its path: one that has grown is not what it was.
    """
    grown = [source for source in info.appended if source.path == info.source.path]
    source, encoder = grown[-1] if grown else info.source, info.encoder
    given: dict[str, Any] = {
        "output": output,
        "model": encoder.model,
        "pretrained": encoder.pretrained,
        "image_root": source.image_root if Path(source.image_root) != Path(source.path).parent else None,
        "image_field": source.image_field,
        "text_field": tuple(source.text_fields),
        "language": tuple(source.languages),
        "language_field": source.language_field,
        "encoding": source.encoding if source.encoding != "utf-8" else None,
        "where": source.where,
        "teacher_field": tuple(source.teacher_fields),
        "images": source.images,
        "split": source.split,
        "limit": source.limit,
        "batch_size": info.batch_size,
        "max_pixels": info.max_pixels,
        "decoding": info.decoding,
        "views": info.num_views,
        "precision": encoder.precision,
    }
    if info.num_views > 1 and info.augmentation:
        given |= {f"augment_{name}": value for name, value in asdict(info.augmentation).items()}
    usual = {name: field.default for name, field in CacheSettings.__dataclass_fields__.items()}
    usual |= {"image_field": "image", "text_field": ("text",)}
    words = ["clipglot", "cache", source.path, *(["--append"] if grown else [])]
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if value is False:
            words.append(f"--no-{name}")
        elif value is not None and value != usual[name]:
            words += [word for each in (value if isinstance(value, tuple) else [value]) for word in (flag, str(each))]
    return shlex.join(words)


def _line(fault: Fault, marked: list[str]) -> str:
    """The line of a fault, without its remedy if its chunk is marked: then that is done."""
    is_marked = fault.chunk is not None and chunk_to_delete(*fault.chunk) in marked
    return fault.message if is_marked else str(fault)
