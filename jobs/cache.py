"""`clipglot cache`: load the towers, plan, embed and seal; run it again to resume."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..cache.errors import CacheError
from ..cache.format import CacheInfo
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.sources.kinds import open_source
from ..cache.sources.source import Source
from ..cache.storage.open import store_at
from ..cache.write.embed import embed_missing
from ..cache.write.image_reader import reader_of
from ..cache.write.report import PassReport
from ..cache.write.text_only import embed_missing_texts
from ..cache.write.text_targets import embed_text_targets
from ..cache.write.views import missing_views
from ..cache.write.work_sharing import Worker
from ..distill.device import resolve_device
from ..distill.errors import LoneError
from ..distill.provenance import encoder_info
from ..encoders.image_queue import Deviation, ImageQueue
from ..encoders.image_tower import ImageTower, load_image_tower
from ..encoders.text_teacher import TextTeacher, load_with_teacher
from .cache_job import CacheJob
from .cache_plan import prepare_cache, prepare_cache_or_wait
from .output_cache import OutputCache
from .settings.cache import CacheSettings


@dataclass(frozen=True, kw_only=True)
class CacheResult:
    """A sealed cache and what this pass did for it.

    Attributes:
        cache: sealed.
        before: the metadata that the cache had before; None if there was none.
        report: counts and seconds of this pass.
        resumed: whether the cache was planned before.
        most_at_once: images that fitted into the device's memory, where a batch did not.
        deviation: of features in half precision, on the first batch.
    """

    cache: Cache
    before: CacheInfo | None
    report: PassReport
    resumed: bool
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

    Alone, or as one of several workers that share the pass.

    Args:
        settings: the same settings resume; a cache of another tower or source is refused.
        on_progress: called with the stages `load`, `wait` (for the first worker), `plan` (records), `teach` (captions)
            and `embed` (images).
        source: a source of your own (docs/sources.md); by default that of `settings.source`.
        output: the cache at `settings.output`, if the caller has opened it.
        on_report: called with the report of the pass so far, each time after stage `embed` has made progress.
        on_note: called once rows are planned, with what the user should know of how the source was read.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    source = source or open_source(settings.source_info)
    source.info = replace(source.info, sha256=source.sha256())
    on_progress(Progress("load", 0))
    tower, teacher = _load_towers(settings)
    worker, store = settings.worker, store_at(settings.output, read_only=False)
    job = CacheJob(
        settings=settings,
        source=source,
        encoder=encoder_info(tower),
        teacher_sha256=teacher.weights_sha256 if teacher else None,
        output=output or OutputCache(settings.output),
    )
    before = job.output.info
    if worker.is_alone:
        with store.lock():
            resumed = prepare_cache(job, on_progress)
            _tell(source, on_note)
            report, queue = _embed(job, tower, teacher, on_progress, on_report)
    else:
        resumed = prepare_cache_or_wait(job, worker, store, on_progress)
        _tell(source, on_note)
        try:
            with store.lock(shared=True):
                report, queue = _embed(job, tower, teacher, on_progress, on_report)
        except CacheError as error:  # of this worker alone: the others go on
            raise LoneError(f"{worker}: {error}") from error
    return CacheResult(
        cache=job.output.require(),
        before=before,
        report=report,
        resumed=resumed,
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
) -> tuple[PassReport, ImageQueue | None]:
    """Embed a worker's part of a prepared cache; return its report, and the queue of images if there are images."""
    settings, worker, cache = job.settings, job.settings.worker, job.output.require()
    if teacher and settings.images:  # first, so that a sealed cache has all text targets
        embed_text_targets(
            cache, teacher.encode, worker, lambda done, total: on_progress(Progress("teach", done, total))
        )
    num_views = max(settings.views, cache.info.num_views)
    missing = {chunk: cache.pending_rows(chunk) for chunk in missing_views(cache, num_views)}
    total = sum(len(rows) for chunk, rows in missing.items() if chunk % worker.num == worker.index)
    before = max(0, _num_rows(cache, worker) - total)  # done by earlier passes
    if missing:
        on_progress(Progress("embed", before, before + total))  # the first batch takes its time

    def embedded(done: int, report: PassReport) -> None:
        # A worker may take over chunks of others, and others may take over some of its own.
        on_progress(Progress("embed", before + done, before + max(done, total)))
        on_report(report)

    if teacher and not settings.images:
        return embed_missing_texts(cache, teacher.encode, worker, embedded), None
    queue = ImageQueue(tower)
    report = embed_missing(
        cache,
        queue,
        reader=reader_of(cache, job.kinds, sources=job.sources_of(cache.info), rows=missing.values()),
        num_workers=settings.resolved_num_workers,
        num_views=num_views,
        worker=worker,
        on_progress=embedded,
    )
    return report, queue


def _num_rows(cache: Cache, worker: Worker) -> int:
    """Number of images in a worker's chunks, of the source that was added last."""
    first = cache.info.appended[-1].first_row if cache.info.appended else 0
    chunks = map(cache.chunk_slice, range(worker.index, cache.num_chunks, worker.num))
    return sum(max(0, rows.stop - max(rows.start, first)) for rows in chunks)


def _load_towers(settings: CacheSettings) -> tuple[ImageTower, TextTeacher | None]:
    """Load the image tower, and the text tower if there are text targets.

    Without images only the identity of the image tower is needed, so it stays off the device.
    """
    device, model, pretrained = resolve_device(settings.device), settings.model, settings.pretrained
    if not settings.teacher_field:
        return load_image_tower(model, pretrained, device=device, precision=settings.precision), None
    tower, teacher = load_with_teacher(model, pretrained, device=device, precision=settings.precision)
    return tower.placed(device) if settings.images else tower, teacher
