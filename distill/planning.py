"""Before a pass: the cache is planned, or found to be of the same settings, and has room for the views.

Of several workers the first does so; the others wait until they find it done.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Literal

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
    """Plan the cache, or bring its metadata up to what is asked for now; returns whether it was planned before.

    Raises:
        CacheError, DistillError: it is another cache, or the manifest cannot be planned.
    """
    settings = job.settings
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
        # Workers that are at it already hold the folder, shared; while there is no plan, nobody can be.
        with store.held(shared=is_planned(job.settings.output)):
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


def _is_prepared(job: Job) -> bool:
    if not is_planned(job.settings.output):
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
    differences = [
        (name, getattr(planned.source, name), getattr(source, name))
        for name in (
            "kind",
            "sha256",
            "image_field",
            "text_fields",
            "teacher_fields",
            "images",
            "limit",
            "where",
            "split",
            "languages",
            "language_field",
        )
    ]
    differences.append(("batch_size", planned.batch_size, settings.batch_size))
    differences.append(("max_pixels", planned.max_pixels, settings.max_pixels))
    differences.append(("decoding", planned.decoding, settings.decoding))
    differences.append(("precision", planned.encoder.precision, settings.precision))
    if planned.state != "sealed" and settings.views < planned.num_views:
        differences.append(("views", planned.num_views, settings.views))
    if settings.views > 1 and planned.augmentation and (planned.num_views > 1 or has_further_views(existing)):
        differences.append(("augmentation", str(planned.augmentation), str(settings.augmentation)))
    if settings.chunk_rows is not None:
        differences.append(("chunk_rows", planned.chunk_rows, settings.chunk_rows))
    for name, before, now in differences:
        if before != now:
            what = f"the manifest {settings.source} has changed (sha256)" if name == "sha256" else name
            raise DistillError(
                f"{settings.output} was planned with other settings: {what} was {before!r}, now {now!r}; "
                "give the same ones to resume, or choose another -o"
            )
