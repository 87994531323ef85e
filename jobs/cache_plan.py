"""Preparation of a pass: a cache is planned, or checked to have the same settings, with room for what is added.

Of several shards the first one does this; the others wait until it is done.
"""

import time
from dataclasses import replace

from ..cache.format import STATUS, CacheInfo
from ..cache.progress import OnProgress, Progress
from ..cache.read.cache import Cache
from ..cache.sources.source import batched
from ..cache.storage.open import CacheStore
from ..cache.write.absent_images import found_again
from ..cache.write.append import finish_append, plan_append
from ..cache.write.image_reader import reader_of
from ..cache.write.plan import plan_cache
from ..cache.write.shard import Shard
from ..cache.write.text_only import rows_of_texts
from ..cache.write.views import make_room, num_begun
from ..distill.errors import DistillError
from .cache_job import CacheJob, appended_index, require_appendable, require_same_plan, require_same_text_targets
from .installed import installed_version

POLL_S = 2.0  # between two looks for the plan
MAX_WAIT_S = 2 * 3600.0  # a table of a hundred million lines is planned in less
_LIBRARIES = ("clipglot", "torch", "open_clip_torch", "timm", "zarr", "numpy", "pillow")


def prepare_cache(job: CacheJob, on_progress: OnProgress) -> bool:
    """Plan the cache or an appended source, or update the metadata to the settings of this pass.

    Returns:
        Whether it was planned before.

    Raises:
        CacheError, DistillError: the cache has other settings, or the source cannot be planned.
    """
    settings, source = job.settings, job.source
    cache = job.output.refresh()  # locked now: nobody else changes it
    if cache:
        finish_append(cache)
    if settings.append:
        return _append(job, on_progress)
    resumed = cache is not None
    if resumed:
        require_same_plan(job)
    else:
        _plan(job, on_progress)
    cache = job.output.require()
    if cache.info.source != source.info:  # the same source and images, which have moved
        root = cache.info.source.image_root
        cache.arrays.write_info(replace(cache.info, source=source.info))
        if root != source.info.image_root:
            end = cache.info.appended[0].first_row if cache.info.appended else len(cache)
            _try_absent_again(job, cache, range(end))
    require_same_text_targets(job)
    if job.teacher_sha256 and cache.info.teacher_sha256 is None:
        cache.arrays.write_info(replace(cache.info, teacher_sha256=job.teacher_sha256))
    if settings.views > cache.info.num_views:
        reader_of(cache, job.kinds)  # raises before anything is changed
    if settings.retry and cache.info.state == "sealed":  # otherwise a retry is under way
        failed = cache.failed_chunks()
        if settings.images:
            reader_of(cache, job.kinds, rows=[cache.pending_rows(chunk) for chunk in failed])  # likewise
        cache.arrays.invalidate([(STATUS, (chunk,)) for chunk in failed])
    if settings.views > cache.info.num_views:
        cache.arrays.write_info(replace(cache.info, augmentation=settings.augmentation))
        make_room(cache, settings.views)
    return resumed


def prepare_cache_or_wait(job: CacheJob, shard: Shard, store: CacheStore, on_progress: OnProgress) -> bool:
    """Prepare the cache as the first of several shards, or wait for the first one to do so.

    Returns:
        Whether the cache was planned before.

    Raises:
        CacheError, DistillError: as `prepare_cache`; or the first shard does not plan in time.
    """
    if not shard.index:
        # Active shards hold a shared lock on the folder; before the cache is planned there can be none.
        job.output.refresh()
        with store.lock(shared=_is_planned(job)):
            return prepare_cache(job, on_progress)
    waiting_from, resumed = time.monotonic(), True
    while not _is_prepared(job):
        if resumed:
            on_progress(Progress("wait", 0))
        resumed = False
        if time.monotonic() - waiting_from > MAX_WAIT_S:
            raise DistillError(
                f"{job.settings.output}: {shard} waited {MAX_WAIT_S / 3600:.0f} hours for shard 0 to plan it: "
                "start that one, or see how it ended, and run this command again"
            )
        time.sleep(POLL_S)
    require_same_text_targets(job)
    return resumed


def _is_planned(job: CacheJob) -> bool:
    """Whether all rows of this job are planned, as the cache was when last read."""
    info = job.output.info
    if info is None or not info.is_laid_out:
        return False
    return not job.settings.append or appended_index(info, job.source.info) is not None


def _is_prepared(job: CacheJob) -> bool:
    """Whether the first shard has prepared the cache by now."""
    cache = job.output.refresh()
    if job.settings.append:
        require_appendable(job)
        return _is_planned(job)
    if cache is None or not _is_planned(job):
        return False
    require_same_plan(job)
    if job.teacher_sha256 and cache.info.teacher_sha256 is None:
        return False
    views = job.settings.views
    return views == 1 or (num_begun(cache) >= views and cache.info.augmentation == job.settings.augmentation)


def _plan(job: CacheJob, on_progress: OnProgress) -> None:
    settings, source = job.settings, job.source
    info = CacheInfo(
        state="planning",
        encoder=job.encoder,
        source=source.info,
        batch_size=settings.batch_size,
        max_pixels=settings.max_pixels,
        decoding=settings.decoding,
        num_views=settings.views,
        augmentation=settings.augmentation if settings.views > 1 else None,
        libraries={name: installed_version(name) for name in _LIBRARIES},
    )
    plan_cache(
        settings.output,
        source.batches() if settings.images else batched(rows_of_texts(source.rows())),
        info,
        files=source.files,
        left_out=source.left_out,
        chunk_rows=settings.chunk_rows,
        hashed=settings.images,
        on_progress=lambda done: on_progress(Progress("plan", done)),
    )
    job.output.refresh()


def _append(job: CacheJob, on_progress: OnProgress) -> bool:
    """Plan an appended source of a sealed cache unless it was planned before; return whether it was.

    A source that brings no new image is recorded as well, because other shards may wait for it.
    """
    require_appendable(job)
    settings, source, cache = job.settings, job.source, job.output.require()
    index = appended_index(cache.info, source.info)
    if index is None:
        plan_append(
            cache,
            source.batches(),
            source.info,
            files=source.files,
            left_out=source.left_out,
            rechunked=settings.chunk_rows is None,
            on_progress=lambda done: on_progress(Progress("plan", done)),
        )
        return False
    appended = list(cache.info.appended)
    appended[index] = replace(source.info, first_row=appended[index].first_row)
    if appended != cache.info.appended:  # the same source and images, which have moved
        root, first = cache.info.appended[index].image_root, appended[index].first_row
        cache.arrays.write_info(replace(cache.info, appended=appended))
        if root != source.info.image_root:
            end = appended[index + 1].first_row if index + 1 < len(appended) else len(cache)
            _try_absent_again(job, cache, range(first, end))
    return True


def _try_absent_again(job: CacheJob, cache: Cache, rows: range) -> None:
    """Have the images of a source tried again that were absent below its old root and are there below the new one."""
    if not job.settings.images or not job.settings.own_shard.is_whole:  # others may be at work on these chunks
        return
    reader = reader_of(cache, job.kinds, sources=job.sources_of(cache.info), rows=[rows])
    cache.arrays.invalidate([(STATUS, (chunk,)) for chunk in found_again(cache, reader, rows)])
