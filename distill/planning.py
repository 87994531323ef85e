"""Before a pass: the cache is planned, or found to be of the same settings, and has room for what is to be added.

Of several workers the first does so; the others wait until they find it done.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

from ..cache.append import finish_append, plan_append
from ..cache.format import CacheInfo, EncoderInfo, SourceInfo
from ..cache.plan import is_planned, plan_cache
from ..cache.rows import batched
from ..cache.sealing import write_info
from ..cache.source import Source
from ..cache.store import Cache
from ..cache.stores import CacheStore
from ..cache.texts import rows_of_texts
from ..cache.views import has_further_views, make_room, num_begun
from ..cache.workers import Worker
from .errors import DistillError
from .provenance import require_same_encoder
from .settings import CacheSettings

Stage = Literal["wait", "plan", "teach", "embed"]
OnProgress = Callable[[Stage, int, int | None], None]
Difference = tuple[str, Any, Any]
"""A setting, what it was and what it is now."""
POLL_S = 2.0  # between two looks whether the plan is there
PATIENCE_S = 2 * 3600.0  # a manifest of a hundred million lines is planned in less
_LIBRARIES = ("clipglot", "torch", "open_clip_torch", "timm", "zarr", "numpy", "pillow")


@dataclass(frozen=True)
class Job:
    """What is to be cached, by which towers.

    Attributes:
        settings: as given.
        source: opened, with its sha256.
        encoder: the image tower.
        teacher_sha256: of the text tower that teaches, if one does.
    """

    settings: CacheSettings
    source: Source
    encoder: EncoderInfo
    teacher_sha256: str | None


def prepare(job: Job, on_progress: OnProgress) -> bool:
    """Plan the cache or a further source of it, or bring its metadata up to what is asked for now.

    Returns:
        Whether it was planned before.

    Raises:
        CacheError, DistillError: it is another cache, or the manifest cannot be planned.
    """
    settings = job.settings
    if is_planned(settings.output):
        finish_append(Cache(settings.output, read_only=False))
    if settings.append:
        return _append(job, on_progress)
    resumed = _plan(job, on_progress)
    cache = Cache(settings.output, read_only=False)
    if cache.info.source != job.source.info:  # the same source and pictures, elsewhere than when they were planned
        write_info(cache, replace(cache.info, source=job.source.info))
    if job.teacher_sha256:
        _require_same_teacher(cache, job.teacher_sha256)
        if cache.info.teacher_sha256 is None:
            write_info(cache, replace(cache.info, teacher_sha256=job.teacher_sha256))
    if settings.views > cache.info.num_views:
        write_info(cache, replace(cache.info, augmentation=settings.augmentation))
        make_room(cache, settings.views)
    return resumed


def prepare_or_wait(job: Job, worker: Worker, store: CacheStore, on_progress: OnProgress) -> bool:
    """Prepare the cache as the first of several workers, or wait for that one to do so.

    Returns:
        Whether the cache was planned before.

    Raises:
        CacheError, DistillError: as `prepare`; or the first worker does not come.
    """
    if not worker.index:
        # Workers that are at it already hold the folder, shared; while a plan is to be made, nobody can be.
        with store.held(shared=_is_there(job)):
            return prepare(job, on_progress)
    waiting_from, resumed = time.monotonic(), True
    while not _is_prepared(job):
        if resumed:
            on_progress("wait", 0, None)
        resumed = False
        if time.monotonic() - waiting_from > PATIENCE_S:
            raise DistillError(
                f"{job.settings.output}: {worker} waited {PATIENCE_S / 3600:.0f} hours for worker 0 to plan it: "
                "start that one, or see how it ended, and run this command again"
            )
        time.sleep(POLL_S)
    if job.teacher_sha256:
        _require_same_teacher(Cache(job.settings.output), job.teacher_sha256)
    return resumed


def _is_there(job: Job) -> bool:
    """Whether the rows that are asked for are planned, all of them."""
    if not is_planned(job.settings.output):
        return False
    info = Cache(job.settings.output).info
    return info.is_laid_out and (not job.settings.append or _place(info, job.source.info) is not None)


def _is_prepared(job: Job) -> bool:
    if job.settings.append:
        _require_appendable(job)
        return _is_there(job)
    if not _is_there(job):
        return False
    cache = Cache(job.settings.output)
    _require_same(cache, job)
    if job.teacher_sha256 and cache.info.teacher_sha256 is None:
        return False
    views = job.settings.views
    return views == 1 or (num_begun(cache) >= views and cache.info.augmentation == job.settings.augmentation)


def _plan(job: Job, on_progress: OnProgress) -> bool:
    """Plan the cache unless it is planned already; returns whether it was, with these very settings."""
    settings = job.settings
    if is_planned(settings.output):
        _require_same(Cache(settings.output), job)
        return True
    source = job.source
    batches = source.batches() if settings.images else batched(rows_of_texts(source.rows()))
    info = CacheInfo(
        state="planning",
        encoder=job.encoder,
        source=source.info,
        batch_size=settings.batch_size,
        max_pixels=settings.max_pixels,
        decoding=settings.decoding,
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
        hashed=settings.images,
        on_progress=lambda done: on_progress("plan", done, None),
    )
    return False


def _append(job: Job, on_progress: OnProgress) -> bool:
    """Plan a further source of a sealed cache unless that was done already; returns whether it was.

    If it brings nothing new, that is kept, too: others may wait to hear of it.
    """
    _require_appendable(job)
    settings, source = job.settings, job.source
    cache = Cache(settings.output, read_only=False)
    place = _place(cache.info, source.info)
    if place is None:
        plan_append(
            cache,
            source.batches(),
            source.info,
            files=source.files,
            left_out=source.left_out,
            rechunked=settings.chunk_rows is None,
            on_progress=lambda done: on_progress("plan", done, None),
        )
        return False
    appended = list(cache.info.appended)
    appended[place] = replace(source.info, first_row=appended[place].first_row)
    if appended != cache.info.appended:  # the same source and pictures, elsewhere
        write_info(cache, replace(cache.info, appended=appended))
    return True


def _place(info: CacheInfo, source: SourceInfo) -> int | None:
    """Which of the appended sources it is, None if it is none of them."""
    return next((i for i, known in enumerate(info.appended) if not _source_differences(known, source)), None)


def _require_appendable(job: Job) -> None:
    """Refuse a cache to which this source cannot be appended with these settings.

    Raises:
        DistillError: no cache, of another tower or batch, with other views, taught by texts, or not complete.
    """
    settings, output = job.settings, job.settings.output
    if not is_planned(output):
        raise DistillError(f"{output}: no cache to append to: leave out --append to make one")
    info = Cache(output).info
    if not info.is_laid_out:
        return  # it is being done, and was found to be possible
    require_same_encoder(info.encoder, job.encoder, f"the tower given for {output}")
    if info.source.teacher_fields:
        raise DistillError(f"{output} was taught by texts: a source cannot be added to it: cache all at once")
    if settings.views not in (1, info.num_views) or num_begun(Cache(output)) > info.num_views:
        raise DistillError(
            f"{output} has {info.num_views} views: --append adds pictures alone; "
            "finish or add --views in a command without it"
        )
    _refuse(settings, _pass_differences(Cache(output), settings))
    if info.state != "sealed" and _place(info, job.source.info) is None:
        raise DistillError(f"{output} is not complete: run its last command again before more is appended")


def _require_same(existing: Cache, job: Job) -> None:
    require_same_encoder(existing.info.encoder, job.encoder, f"the tower given for {job.settings.output}")
    _require_same_plan(existing, job.source.info, job.settings)


def _require_same_teacher(cache: Cache, found: str) -> None:
    """Refuse another text tower than the one that teaches.

    Raises:
        DistillError: it is another.
    """
    taught_by = cache.info.teacher_sha256
    if taught_by and taught_by != found:
        raise DistillError(
            f"{cache.path} was taught by a text tower of sha256 {taught_by[:12]}…, "
            f"the one given has {found[:12]}…: give the same --model and --pretrained, or choose another -o"
        )


def _require_same_plan(existing: Cache, source: SourceInfo, settings: CacheSettings) -> None:
    """Refuse to go on with another manifest, other columns or other batches than the cache was planned with.

    The image root may differ: pictures move, and their keys are relative to it. Views may be more: they are added, with
    the augmentation of those that are there.
    """
    planned = existing.info
    differences = _source_differences(planned.source, source) + _pass_differences(existing, settings)
    if planned.state != "sealed" and settings.views < planned.num_views:
        differences.append(("views", planned.num_views, settings.views))
    _refuse(settings, differences)
    if settings.views > planned.num_views and any(existing.first_pending(i) for i in range(existing.num_chunks)):
        raise DistillError(
            f"{settings.output} has appended pictures that are not embedded in its {planned.num_views} views: "
            "run this command without --views first"
        )


def _source_differences(planned: SourceInfo, source: SourceInfo) -> list[Difference]:
    names = ["kind", "image_field", "text_fields", "teacher_fields", "images", "limit", "where", "split", "languages"]
    names += ["language_field", "sha256"]  # last: of Parquet and Arrow it covers the columns that the others ask for
    both = [(name, getattr(planned, name), getattr(source, name)) for name in names]
    return [(name, before, now) for name, before, now in both if before != now]


def _pass_differences(existing: Cache, settings: CacheSettings) -> list[Difference]:
    planned = existing.info
    differences: list[Difference] = [
        ("batch_size", planned.batch_size, settings.batch_size),
        ("max_pixels", planned.max_pixels, settings.max_pixels),
        ("decoding", planned.decoding, settings.decoding),
        ("precision", planned.encoder.precision, settings.precision),
    ]
    if settings.views > 1 and planned.augmentation and (planned.num_views > 1 or has_further_views(existing)):
        differences.append(("augmentation", str(planned.augmentation), str(settings.augmentation)))
    if settings.chunk_rows is not None:
        differences.append(("chunk_rows", planned.chunk_rows, settings.chunk_rows))
    return [(name, before, now) for name, before, now in differences if before != now]


def _refuse(settings: CacheSettings, differences: list[Difference]) -> None:
    for name, before, now in differences:
        if name == "sha256":
            raise DistillError(
                f"{settings.source} has changed since {settings.output} was planned (its sha256 was {before[:12]}…, "
                f"now {now[:12]}…): give the same one to resume, or choose another -o"
            )
        raise DistillError(
            f"{settings.output} was planned with other settings: {name} was {before!r}, now {now!r}; "
            "give the same ones to resume, or choose another -o"
        )
