"""`clipglot cache`: tower, plan, pass and seal, resumed by running it again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

from ..cache.append import finish_append, plan_append
from ..cache.embed import PassReport, embed_missing, write_info
from ..cache.files import locked
from ..cache.format import CacheInfo, EncoderInfo, SourceInfo
from ..cache.plan import is_planned, plan_cache
from ..cache.rows import batched
from ..cache.source import Source
from ..cache.sources import KINDS, open_source, reader_of
from ..cache.store import Cache
from ..cache.teacher import embed_teacher
from ..cache.texts import embed_missing_texts, rows_of_texts
from ..cache.views import has_further_views, make_room, missing_views, num_begun
from ..encoders.image import ImageTower, load_image_tower
from ..encoders.teacher import TextTeacher, load_with_teacher
from .device import resolve_device
from .errors import DistillError
from .provenance import encoder_info, require_same_encoder
from .settings import CacheSettings

Stage = Literal["plan", "teach", "embed"]
Difference = tuple[str, Any, Any]
"""A setting, what it was and what it is now."""

_LIBRARIES = ("clipglot", "torch", "open_clip_torch", "timm", "zarr", "numpy", "pillow")


@dataclass(frozen=True, kw_only=True)
class CacheResult:
    """A sealed cache and what this pass did for it."""

    cache: Cache
    report: PassReport
    resumed: bool


def cache_pictures(
    settings: CacheSettings,
    on_progress: Callable[[Stage, int, int | None], None] = lambda stage, done, total: None,
    *,
    source: Source | None = None,
) -> CacheResult:
    """Embed every picture of a source, finish what an earlier pass left, or add views.

    Args:
        settings: the same settings resume; a cache of another tower or source is refused.
        source: one of your own (docs/sources.md); by default recognised from `settings.source`.
        on_progress: called with the stage, what is done of it and the total where known.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    source = source or open_source(settings.source_info)
    info = replace(source.info, sha256=source.sha256())
    tower, teacher = _load(settings)
    encoder = encoder_info(tower)
    with locked(settings.output):
        plan = _append if settings.append else _plan
        resumed = plan(settings, source, info, encoder, lambda done: on_progress("plan", done, None))
        cache = Cache(settings.output, read_only=False)
        finish_append(cache)
        moved = cache.info.source != info and not settings.append
        if moved:  # the same manifest and pictures, elsewhere than when they were planned
            write_info(cache, replace(cache.info, source=info))
        if teacher:
            _require_same_teacher(cache, teacher.weights_sha256)
        if teacher and settings.images:  # first, so that a sealed cache has all of it
            embed_teacher(cache, teacher.encode, lambda done, total: on_progress("teach", done, total))
        if settings.views > cache.info.num_views:
            write_info(cache, replace(cache.info, augmentation=settings.augmentation))
            make_room(cache, settings.views)
        num_views = max(settings.views, cache.info.num_views)
        missing = missing_views(cache, num_views)
        total = sum(len(range(len(cache))[cache.chunk_slice(chunk)]) for chunk in missing)
        if teacher and not settings.images:
            report = embed_missing_texts(cache, teacher.encode, lambda done, report: on_progress("embed", done, total))
            return CacheResult(cache=cache, report=report, resumed=resumed)
        report = embed_missing(
            cache,
            tower.encode,
            reader=reader_of(cache, {**KINDS, source.kind: type(source)}),
            workers=settings.resolved_workers,
            num_views=num_views,
            on_progress=lambda done, report: on_progress("embed", done, total),
        )
    return CacheResult(cache=cache, report=report, resumed=resumed)


def _load(settings: CacheSettings) -> tuple[ImageTower, TextTeacher | None]:
    """The towers, on the device if they compute: without pictures the image tower is there for its identity alone."""
    device, model, pretrained = resolve_device(settings.device), settings.model, settings.pretrained
    if not settings.teacher_field:
        return load_image_tower(model, pretrained, device=device, precision=settings.precision), None
    tower, teacher = load_with_teacher(model, pretrained, device=device, precision=settings.precision)
    return tower.placed(device) if settings.images else tower, teacher


def _plan(
    settings: CacheSettings,
    source: Source,
    source_info: SourceInfo,
    encoder: EncoderInfo,
    on_progress: Callable[[int], None],
) -> bool:
    """Plan the cache unless it is planned already; returns whether it was, with these very settings."""
    if is_planned(settings.output):
        existing = Cache(settings.output)
        require_same_encoder(existing.info.encoder, encoder, f"the tower given for {settings.output}")
        _require_same_plan(existing, source_info, settings)
        return True
    batches = source.batches() if settings.images else batched(rows_of_texts(source.rows()))
    info = CacheInfo(
        state="planning",
        encoder=encoder,
        source=source_info,
        batch_size=settings.batch_size,
        max_pixels=settings.max_pixels,
        num_views=settings.views,
        augmentation=settings.augmentation if settings.views > 1 else None,
        libraries={name: version(name) for name in _LIBRARIES},
    )
    plan_cache(
        settings.output,
        batches,
        info,
        files=source.files,
        left_out=source.left_out,
        chunk_rows=settings.chunk_rows,
        on_progress=on_progress,
    )
    return False


def _append(
    settings: CacheSettings,
    source: Source,
    source_info: SourceInfo,
    encoder: EncoderInfo,
    on_progress: Callable[[int], None],
) -> bool:
    """Add a source to a sealed cache unless it was added already; returns whether it was."""
    if not is_planned(settings.output):
        raise DistillError(f"{settings.output}: no cache to append to: leave out --append to make one")
    cache = Cache(settings.output, read_only=False)
    finish_append(cache)
    info = cache.info
    require_same_encoder(info.encoder, encoder, f"the tower given for {settings.output}")
    if info.source.teacher_fields:
        raise DistillError(f"{settings.output} was taught by texts: a source cannot be added to it: cache all at once")
    if settings.views not in (1, info.num_views) or num_begun(cache) > info.num_views:
        raise DistillError(
            f"{settings.output} has {info.num_views} views: --append adds pictures alone; "
            "finish or add --views in a command without it"
        )
    _refuse(settings, _pass_differences(cache, settings))
    added = next((i for i, known in enumerate(info.appended) if not _source_differences(known, source_info)), None)
    if added is None and info.state != "sealed":
        raise DistillError(f"{settings.output} is not complete: run its last command again before more is appended")
    if added is None:
        plan_append(
            cache,
            source.batches(),
            source_info,
            files=source.files,
            left_out=source.left_out,
            on_progress=on_progress,
        )
        return False
    moved = replace(source_info, first_row=info.appended[added].first_row)
    if moved != info.appended[added]:  # the same manifest and pictures, elsewhere
        write_info(cache, replace(cache.info, appended=[*info.appended[:added], moved, *info.appended[added + 1 :]]))
    return True


def _require_same_teacher(cache: Cache, found: str) -> None:
    """Keep the identity of the text tower that teaches, and refuse another."""
    if cache.info.teacher_sha256 is None:
        write_info(cache, replace(cache.info, teacher_sha256=found))
    elif cache.info.teacher_sha256 != found:
        raise DistillError(
            f"{cache.path} was taught by a text tower of sha256 {cache.info.teacher_sha256[:12]}…, "
            f"the one given has {found[:12]}…: give the same --model and --pretrained, or choose another -o"
        )


def _require_same_plan(existing: Cache, source: SourceInfo, settings: CacheSettings) -> None:
    """Refuse to go on with another manifest, other columns or other batches than the cache was planned with.

    The image root may differ: pictures move, and their keys are relative to it. Views may be more: they are added, with
    the augmentation of those that are there.
    """
    differences = _source_differences(existing.info.source, source) + _pass_differences(existing, settings)
    if existing.info.state != "sealed" and settings.views < existing.info.num_views:
        differences.append(("views", existing.info.num_views, settings.views))
    _refuse(settings, differences)


def _source_differences(planned: SourceInfo, source: SourceInfo) -> list[Difference]:
    names = ["kind", "sha256", "image_field", "text_fields", "teacher_fields", "images", "limit", "where", "split"]
    both = [(name, getattr(planned, name), getattr(source, name)) for name in [*names, "languages", "language_field"]]
    return [(name, before, now) for name, before, now in both if before != now]


def _pass_differences(existing: Cache, settings: CacheSettings) -> list[Difference]:
    planned = existing.info
    differences: list[Difference] = [
        ("batch_size", planned.batch_size, settings.batch_size),
        ("max_pixels", planned.max_pixels, settings.max_pixels),
        ("precision", planned.encoder.precision, settings.precision),
    ]
    if settings.views > 1 and planned.augmentation and (planned.num_views > 1 or has_further_views(existing)):
        differences.append(("augmentation", str(planned.augmentation), str(settings.augmentation)))
    if settings.chunk_rows is not None:
        differences.append(("chunk_rows", planned.chunk_rows, settings.chunk_rows))
    return [(name, before, now) for name, before, now in differences if before != now]


def _refuse(settings: CacheSettings, differences: list[Difference]) -> None:
    for name, before, now in differences:
        what = f"the manifest {settings.source} has changed (sha256)" if name == "sha256" else name
        raise DistillError(
            f"{settings.output} was planned with other settings: {what} was {before!r}, now {now!r}; "
            "give the same ones to resume, or choose another -o"
        )
