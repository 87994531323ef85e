"""`clipglot cache`: tower, plan, pass and seal, resumed by running it again."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..cache.errors import CacheError
from ..cache.read.cache import Cache
from ..cache.sources.kinds import open_source
from ..cache.sources.source import Source
from ..cache.storage.open import store_at
from ..cache.write.embed import embed_missing
from ..cache.write.image_reader import reader_of
from ..cache.write.report import PassReport
from ..cache.write.text_only import embed_missing_texts
from ..cache.write.text_targets import embed_teacher
from ..cache.write.views import missing_views
from ..distill.device import resolve_device
from ..distill.errors import LoneError
from ..distill.provenance import encoder_info
from ..encoders.image_queue import Deviation, ImageQueue
from ..encoders.image_tower import ImageTower, load_image_tower
from ..encoders.text_teacher import TextTeacher, load_with_teacher
from .cache_job import CacheJob
from .cache_plan import OnProgress, prepare_cache, prepare_cache_or_wait
from .settings.cache import CacheSettings


@dataclass(frozen=True, kw_only=True)
class CacheResult:
    """A sealed cache and what this pass did for it.

    Attributes:
        most_at_once: images that fitted into the device's memory, where a batch did not.
        deviation: of features in half precision, on the first batch.
    """

    cache: Cache
    report: PassReport
    resumed: bool
    most_at_once: int | None = None
    deviation: Deviation | None = None


def cache_images(
    settings: CacheSettings,
    on_progress: OnProgress = lambda stage, done, total: None,
    *,
    source: Source | None = None,
    on_report: Callable[[PassReport], None] = lambda report: None,
) -> CacheResult:
    """Embed every image of a source, finish what an earlier pass left, or add views or a further source.

    Alone, or as one of several that share the pass.

    Args:
        settings: the same settings resume; a cache of another tower or source is refused.
        on_progress: called with the stage, what is done of it and the total where known.
        source: one of your own (docs/sources.md); by default recognised from `settings.source`.
        on_report: called with what the pass over images has done so far.

    Raises:
        CacheError, EncoderError, DistillError: each message says what to do.
    """
    source = source or open_source(settings.source_info)
    source.info = replace(source.info, sha256=source.sha256())
    on_progress("load", 0, None)
    tower, teacher = _load(settings)
    worker, store = settings.worker, store_at(settings.output, read_only=False)
    job = CacheJob(settings, source, encoder_info(tower), teacher.weights_sha256 if teacher else None)
    if worker.is_alone:
        with store.lock():
            resumed = prepare_cache(job, on_progress)
            return _embed(job, tower, teacher, resumed, on_progress, on_report)
    resumed = prepare_cache_or_wait(job, worker, store, on_progress)
    try:
        with store.lock(shared=True):
            return _embed(job, tower, teacher, resumed, on_progress, on_report)
    except CacheError as error:  # this worker's own, while the others go on
        raise LoneError(f"{worker}: {error}") from error


def _embed(
    job: CacheJob,
    tower: ImageTower,
    teacher: TextTeacher | None,
    resumed: bool,
    on_progress: OnProgress,
    on_report: Callable[[PassReport], None],
) -> CacheResult:
    """What a worker does of the pass, once the cache is prepared."""
    settings, worker = job.settings, job.settings.worker
    cache = Cache(settings.output, read_only=False)
    if teacher and settings.images:  # first, so that a sealed cache has all of it
        embed_teacher(cache, teacher.encode, worker, lambda done, total: on_progress("teach", done, total))
    num_views = max(settings.views, cache.info.num_views)
    to_make = {chunk: cache.pending_rows(chunk) for chunk in missing_views(cache, num_views)}
    total = sum(len(rows) for chunk, rows in to_make.items() if chunk % worker.num == worker.index)

    if to_make:
        on_progress("embed", 0, total)  # the first batch takes its time

    def embedded(done: int, report: PassReport) -> None:
        on_progress("embed", done, max(done, total))  # it may take over chunks of others, and they some of its own
        on_report(report)

    if teacher and not settings.images:
        report = embed_missing_texts(cache, teacher.encode, worker, embedded)
        return CacheResult(cache=cache, report=report, resumed=resumed)
    queue = ImageQueue(tower)
    report = embed_missing(
        cache,
        queue,
        reader=reader_of(cache, job.kinds, sources=job.sources_of(cache.info), rows=to_make.values()),
        num_workers=settings.resolved_num_workers,
        num_views=num_views,
        worker=worker,
        on_progress=embedded,
    )
    return CacheResult(cache=cache, report=report, resumed=resumed, most_at_once=queue.most, deviation=queue.deviation)


def _load(settings: CacheSettings) -> tuple[ImageTower, TextTeacher | None]:
    """The towers, on the device if they compute: without images the image tower is there for its identity alone."""
    device, model, pretrained = resolve_device(settings.device), settings.model, settings.pretrained
    if not settings.teacher_field:
        return load_image_tower(model, pretrained, device=device, precision=settings.precision), None
    tower, teacher = load_with_teacher(model, pretrained, device=device, precision=settings.precision)
    return tower.placed(device) if settings.images else tower, teacher
