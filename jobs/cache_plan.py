"""Before a pass: the cache is planned, or found to be of the same settings, and has room for what is to be added.

Of several workers the first does so; the others wait until they find it done.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Literal

from ..cache.format import STATUS, CacheInfo
from ..cache.read.cache import Cache
from ..cache.sources.source import batched
from ..cache.storage.open import CacheStore
from ..cache.write.append import finish_append, plan_append
from ..cache.write.image_reader import reader_of
from ..cache.write.plan import is_planned, plan_cache
from ..cache.write.text_only import rows_of_texts
from ..cache.write.views import make_room, num_begun
from ..cache.write.work_sharing import Worker
from ..distill.errors import DistillError
from .cache_job import CacheJob, number_of, require_appendable, require_same, require_same_teacher

Stage = Literal["load", "wait", "plan", "teach", "embed"]
OnProgress = Callable[[Stage, int, int | None], None]
POLL_S = 2.0  # between two looks whether the plan is there
PATIENCE_S = 2 * 3600.0  # a manifest of a hundred million lines is planned in less
_LIBRARIES = ("clipglot", "torch", "open_clip_torch", "timm", "zarr", "numpy", "pillow")


def prepare_cache(job: CacheJob, on_progress: OnProgress) -> bool:
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
    if cache.info.source != job.source.info:  # the same source and images, elsewhere than when they were planned
        cache.arrays.write_info(replace(cache.info, source=job.source.info))
    if job.teacher_sha256:
        require_same_teacher(cache, job.teacher_sha256)
        if cache.info.teacher_sha256 is None:
            cache.arrays.write_info(replace(cache.info, teacher_sha256=job.teacher_sha256))
    if settings.views > cache.info.num_views:
        reader_of(cache, job.kinds)  # or fail before anything is changed
    if settings.retry and cache.info.state == "sealed":  # else it is on its way already
        failed = cache.failed_chunks()
        if settings.images:
            reader_of(cache, job.kinds, rows=[cache.pending_rows(chunk) for chunk in failed])  # likewise
        cache.arrays.invalidate([(STATUS, (chunk,)) for chunk in failed])
    if settings.views > cache.info.num_views:
        cache.arrays.write_info(replace(cache.info, augmentation=settings.augmentation))
        make_room(cache, settings.views)
    return resumed


def prepare_cache_or_wait(job: CacheJob, worker: Worker, store: CacheStore, on_progress: OnProgress) -> bool:
    """Prepare the cache as the first of several workers, or wait for that one to do so.

    Returns:
        Whether the cache was planned before.

    Raises:
        CacheError, DistillError: as `prepare_cache`; or the first worker does not come.
    """
    if not worker.index:
        # Workers that are at it already hold the folder, shared; while a plan is to be made, nobody can be.
        with store.lock(shared=_is_there(job)):
            return prepare_cache(job, on_progress)
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
        require_same_teacher(Cache(job.settings.output), job.teacher_sha256)
    return resumed


def _is_there(job: CacheJob) -> bool:
    """Whether the rows that are asked for are planned, all of them."""
    if not is_planned(job.settings.output):
        return False
    info = Cache(job.settings.output).info
    return info.is_laid_out and (not job.settings.append or number_of(info, job.source.info) is not None)


def _is_prepared(job: CacheJob) -> bool:
    if job.settings.append:
        require_appendable(job)
        return _is_there(job)
    if not _is_there(job):
        return False
    cache = Cache(job.settings.output)
    require_same(cache, job)
    if job.teacher_sha256 and cache.info.teacher_sha256 is None:
        return False
    views = job.settings.views
    return views == 1 or (num_begun(cache) >= views and cache.info.augmentation == job.settings.augmentation)


def _plan(job: CacheJob, on_progress: OnProgress) -> bool:
    """Plan the cache unless it is planned already; returns whether it was, with these very settings."""
    settings = job.settings
    if is_planned(settings.output):
        require_same(Cache(settings.output), job)
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


def _append(job: CacheJob, on_progress: OnProgress) -> bool:
    """Plan a further source of a sealed cache unless that was done already; returns whether it was.

    If it brings nothing new, that is kept, too: others may wait to hear of it.
    """
    require_appendable(job)
    settings, source = job.settings, job.source
    cache = Cache(settings.output, read_only=False)
    number = number_of(cache.info, source.info)
    if number is None:
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
    appended[number] = replace(source.info, first_row=appended[number].first_row)
    if appended != cache.info.appended:  # the same source and images, elsewhere
        cache.arrays.write_info(replace(cache.info, appended=appended))
    return True
