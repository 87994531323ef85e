"""`clipglot cache`: load the towers, plan, embed and seal; run it again to resume."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..cache.errors import CacheError
from ..cache.format import CacheInfo
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.sources.kinds import SOURCES, open_source
from ..cache.sources.source import Source
from ..cache.storage.open import store_at
from ..cache.write.embed import embed_missing
from ..cache.write.image_reader import reader_of
from ..cache.write.report import PassReport
from ..cache.write.seal import num_missing, seal_if_whole
from ..cache.write.shard import Shard
from ..cache.write.text_only import embed_missing_texts
from ..cache.write.text_targets import embed_text_targets
from ..cache.write.views import missing_views
from ..distill.device import resolve_device
from ..distill.errors import DistillError, LoneError
from ..distill.provenance import encoder_info
from ..encoders.image_queue import Deviation, ImageQueue
from ..encoders.image_tower import ImageTower
from ..encoders.text_teacher import TextTeacher
from .cache_job import CacheJob, load_towers
from .cache_plan import prepare_cache, prepare_cache_or_wait
from .installed import require_dask
from .output_cache import OutputCache
from .settings.cache import CacheSettings

if TYPE_CHECKING:
    from .dask_pass import PassWorkers


POLL_S = 1.0  # between two looks whether the other processes of torchrun have ended


@dataclass(frozen=True, kw_only=True)
class CacheResult:
    """A cache and what this pass did for it.

    Attributes:
        cache: sealed, unless other shards have still to make some of its chunks.
        before: the metadata that the cache had before; None if there was none.
        report: counts and seconds of this pass.
        resumed: whether the cache was planned before.
        chunks_left: that other shards have to make.
        most_at_once: images that fitted into the device's memory, where a batch did not.
        deviation: of features in half precision, on the first batch.
    """

    cache: Cache
    before: CacheInfo | None
    report: PassReport
    resumed: bool
    chunks_left: int = 0
    most_at_once: int | None = None
    deviation: Deviation | None = None


def cache_images(
    settings: CacheSettings,
    on_progress: OnProgress = ignore_progress,
    *,
    source: Source | None = None,
    output: OutputCache | None = None,
    on_report: Callable[[PassReport], None] = lambda report: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> CacheResult:
    """Embed every image of a source, finish an interrupted pass, or add views or another source.

    In this process, or on a Dask cluster; all of it, or one shard.

    Args:
        settings: the same settings resume; a cache of another tower or source is refused.
        on_progress: called with the stages `load`, `wait` (for the first shard), `plan` (records), `teach` (captions)
            and `embed` (images).
        source: a source of your own (docs/sources.md); by default that of `settings.source`.
        output: the cache at `settings.output`, if the caller has opened it.
        on_report: called with the report of the pass so far, each time after stage `embed` has made progress.
        on_note: called with what the user should know of how the source was read, and of the cluster.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    source = source or open_source(settings.source_info)
    source.info = replace(source.info, sha256=source.sha256())
    if settings.scheduler:
        require_dask()
        if source.kind not in SOURCES:
            raise DistillError("--scheduler: its workers do not have a source of your own: cache it in one process")
    on_progress(Progress("load", 0))
    # Where others embed, only the identity of the towers is needed.
    tower, teacher = load_towers(settings, "cpu" if settings.scheduler else resolve_device(settings.device))
    shard, store = settings.own_shard, store_at(settings.output, read_only=False)
    job = CacheJob(
        settings=settings,
        source=source,
        encoder=encoder_info(tower),
        teacher_sha256=teacher.weights_sha256 if teacher else None,
        output=output or OutputCache(settings.output),
    )
    before, chunks_left = job.output.info, 0
    if shard.is_whole:
        with store.lock():
            resumed = prepare_cache(job, on_progress)
            _tell(source, on_note)
            report, queue = _embed(job, tower, teacher, on_progress, on_report, on_note)
    else:
        resumed = prepare_cache_or_wait(job, shard, store, on_progress)
        _tell(source, on_note)
        try:
            with store.lock(shared=True):
                report, queue = _embed(job, tower, teacher, on_progress, on_report, on_note)
                report = replace(report, others_s=_wait_for_ranks(job))
                chunks_left = seal_if_whole(job.output.require(), settings.views, shard, changed=False)
        except CacheError as error:  # of this shard alone: the others go on
            raise LoneError(f"{shard}: {error}") from error
    return CacheResult(
        cache=job.output.require(),
        before=before,
        report=report,
        resumed=resumed,
        chunks_left=chunks_left,
        most_at_once=queue.max_images if queue else None,
        deviation=queue.deviation if queue else None,
    )


def _tell(source: Source, on_note: Callable[[str], None]) -> None:
    """Give on what the source has noted; nothing if its rows were not read."""
    for note in source.notes:
        on_note(note)


def _embed(
    job: CacheJob,
    tower: ImageTower,
    teacher: TextTeacher | None,
    on_progress: OnProgress,
    on_report: Callable[[PassReport], None],
    on_note: Callable[[str], None],
) -> "tuple[PassReport, ImageQueue | PassWorkers | None]":
    """Embed a shard of a prepared cache; return its report, and what moved images to a device if there are images."""
    settings, shard, cache = job.settings, job.settings.own_shard, job.output.require()
    num_views = max(settings.views, cache.info.num_views)
    missing = {chunk: cache.pending_rows(chunk) for chunk in missing_views(cache, num_views) if chunk in shard}
    total = sum(map(len, missing.values()))
    before = max(0, _num_rows(cache, shard) - total)  # done by earlier passes

    def taught(done: int, num_captions: int) -> None:
        on_progress(Progress("teach", done, num_captions))

    def begin() -> None:
        if missing:
            on_progress(Progress("embed", before, before + total))  # the first batch takes its time

    def embedded(done: int, report: PassReport) -> None:
        on_progress(Progress("embed", before + done, before + total))
        on_report(report)

    if settings.scheduler and num_missing(cache, num_views):
        from . import dask_pass  # imports distributed, which a pass without it must not

        if not cache.info.source.has_teacher:
            begin()  # a cluster takes its time to start
        with dask_pass.workers_of(job, num_views, on_note) as workers:
            workers.embed_text_targets(taught)
            return workers.embed_missing(embedded), workers
    needs_lock = not shard.is_whole and num_missing(cache, num_views, [shard])
    with cache.arrays.store.lock_shard(shard.index, shard.num) if needs_lock else nullcontext():
        if teacher and settings.images:  # first, so that a sealed cache has all text targets
            embed_text_targets(cache, teacher.encode, shard, taught)
        begin()
        if teacher and not settings.images:
            return embed_missing_texts(cache, teacher.encode, shard, embedded), None
        queue = ImageQueue(tower)
        report = embed_missing(
            cache,
            queue,
            reader=reader_of(cache, job.kinds, sources=job.sources_of(cache.info), rows=missing.values()),
            num_workers=settings.resolved_num_workers,
            num_views=num_views,
            shard=shard,
            on_progress=embedded,
        )
        return report, queue


def _wait_for_ranks(job: CacheJob) -> float:
    """As the first process of `torchrun`, which reports for all, wait until the others have done their shards.

    If one of them fails, torchrun ends this one.

    Returns:
        The seconds.
    """
    started, (first, *others) = time.monotonic(), job.settings.launched_shards
    if job.settings.own_shard == first:
        while others and num_missing(job.output.require(), job.settings.views, others):
            time.sleep(POLL_S)
    return time.monotonic() - started


def _num_rows(cache: Cache, shard: Shard) -> int:
    """Number of images in a shard's chunks, of the source that was added last."""
    first = cache.info.appended[-1].first_row if cache.info.appended else 0
    chunks = [cache.chunk_slice(chunk) for chunk in range(cache.num_chunks) if chunk in shard]
    return sum(max(0, rows.stop - max(rows.start, first)) for rows in chunks)
