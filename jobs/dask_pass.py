"""The caching pass on a Dask cluster: a task a missing chunk.

A worker loads the towers at its first task and keeps them, with its decoding processes, for the next. The store alone
says what is done, so the driver may be started again.
"""

import multiprocessing
import platform
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from ..cache.errors import CacheError
from ..cache.format import SourceInfo
from ..cache.write.absent_images import AllAbsentError, is_all_absent, sees_some_image
from ..cache.write.decode_pool import BlockReader
from ..cache.write.embed import OnReport, decoder_of, embed_chunks, stop_if_all_absent
from ..cache.write.image_reader import reader_of
from ..cache.write.report import PassReport
from ..cache.write.seal import seal
from ..cache.write.text_only import embed_text_chunk
from ..cache.write.text_targets import captions_of, embed_text_target_chunk, missing_text_target_chunks
from ..cache.write.views import MissingViews, missing_views
from ..distill.device import resolve_device
from ..distill.provenance import encoder_info, require_same_encoder
from ..encoders.image_queue import Deviation, ImageQueue
from .cache_job import CacheJob, load_towers
from .dask_cluster import Answer, OnNote, Order, Task, Waited, Workers, cache_of_worker, connected
from .settings.cache import CacheSettings

Kind = Literal["teach", "embed", "texts"]


@dataclass(frozen=True, kw_only=True)
class PassOrder(Order):
    """What a worker must know of a pass.

    Attributes:
        settings: of the pass; paths are absolute.
        sources: of the cache, by the paths under which the driver finds them.
        num_views: that the cache shall have.
        teacher_sha256: of the text tower, if there is one.
    """

    takes_gpu: ClassVar[bool] = True
    kept: ClassVar[str] = "; the chunks that were written are kept"
    settings: CacheSettings
    sources: tuple[SourceInfo, ...]
    num_views: int
    teacher_sha256: str | None

    def open(self, num_cores: int, opened: ExitStack) -> Callable[..., Any]:
        """As of `Order`."""
        return _Embedder(self, num_cores, opened).embed


class _Embedder:
    """The towers, the cache and the decoding processes of a worker."""

    def __init__(self, order: PassOrder, num_cores: int, opened: ExitStack) -> None:
        # A nanny makes its worker a daemon, which may have no children. The decoding processes end with the worker.
        multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
        settings, self._num_cores = order.settings, num_cores
        torch.set_num_threads(num_cores)  # Dask sets one, whatever cores a worker has
        self._device = resolve_device(settings.device)
        tower, teacher = load_towers(settings, self._device)
        self._encode_texts: Any = teacher.encode if teacher else None
        self._cache = cache = cache_of_worker(settings.output, read_only=False)
        require_same_encoder(cache.info.encoder, encoder_info(tower), "the tower that it loads")
        if teacher and teacher.weights_sha256 != order.teacher_sha256:
            raise CacheError(f"has another text tower of {settings.model}: give it the weights that the command has")
        self._queue = ImageQueue(tower)
        if settings.images:
            rows = [cache.pending_rows(chunk) for chunk in missing_views(cache, order.num_views)]
            reader = reader_of(cache, sources=order.sources, rows=rows)
            num_decoders = settings.num_workers or num_cores * settings.decoders_per_core
            self._decoder = opened.enter_context(decoder_of(cache, reader, num_decoders, order.num_views))

    def embed(self, kind: Kind, chunk: int, views: list[int]) -> dict[str, Any]:
        """Embed and write a chunk; returns counts, and what the user is told of this worker."""
        torch.set_num_threads(self._num_cores)  # a setting of the thread, and Dask may take another one
        if kind == "embed":
            report = embed_chunks(self._cache, self._queue, self._decoder, {chunk: tuple(views)})
        elif kind == "texts":
            report = embed_text_chunk(self._cache, self._encode_texts, chunk)
        else:
            report = PassReport(num_pictures=embed_text_target_chunk(self._cache, self._encode_texts, chunk))
        deviation = self._queue.deviation and asdict(self._queue.deviation)
        told = {"max_images": self._queue.max_images, "deviation": deviation, "hardware": self._hardware()}
        return {"report": asdict(report)} | told

    def _hardware(self) -> str:
        """What the last bits of an embedding depend on."""
        if self._device.type == "cuda":
            return f"{torch.cuda.get_device_name(self._device)}, torch {torch.__version__}"
        return f"{platform.machine()} with {self._num_cores} threads, torch {torch.__version__}"


class PassWorkers:
    """The workers of a cluster, which embed what is missing of a prepared cache.

    Attributes:
        max_images: images that fitted at once into the memory of the worker with the least; None if every batch fitted.
        deviation: of features in half precision, on the first batch of the worker with the largest.
    """

    def __init__(self, workers: Workers, job: CacheJob, num_views: int, on_note: OnNote) -> None:
        self._workers, self._on_note = workers, on_note
        self._cache, self._num_views = job.output.require(), num_views
        self._reader: Callable[[], BlockReader] = lambda: reader_of(
            self._cache, sources=job.sources_of(self._cache.info)
        )
        self._hardware: set[str] = set()
        self.max_images: int | None = None
        self.deviation: Deviation | None = None

    def embed_text_targets(self, on_progress: Callable[[int, int], None]) -> None:
        """Embed the translations of the missing chunks of captions, if the cache has text targets.

        Raises:
            CacheError: as `text_targets.embed_text_targets`, or as `embed_missing`.
        """
        cache = self._cache
        missing = missing_text_target_chunks(cache) if cache.info.source.has_teacher else []
        done, total = 0, sum(len(captions_of(cache, chunk)) for chunk in missing)
        for part in self._run("teach", dict.fromkeys(missing, ())):
            done += part.num_pictures
            on_progress(done, total)

    def embed_missing(self, on_progress: OnReport) -> PassReport:
        """Embed the missing chunks, then seal the cache.

        Raises:
            CacheError: as `embed.embed_missing`; the scheduler is lost; a chunk ends one worker after another.
        """
        cache, started, report = self._cache, time.perf_counter(), PassReport()
        missing = missing_views(cache, self._num_views)
        kind: Kind = "embed" if cache.info.source.images else "texts"
        with stop_if_all_absent(cache, self._reader, missing, on_progress) as checked:
            try:
                with closing(self._run(kind, missing)) as parts:
                    for part in parts:
                        report = replace(report + part, wall_s=time.perf_counter() - started)
                        checked(report.num_pictures, report)
            except AllAbsentError:  # what is still under way would be written after the others were forgotten
                self._workers.finish()
                raise
        cache.arrays.refresh()
        seal(cache, self._num_views, changed=bool(missing))
        return replace(report, wall_s=time.perf_counter() - started)

    def _run(self, kind: Kind, chunks: MissingViews) -> Generator[PassReport, None, None]:
        """Have chunks embedded; yield what each has taken, and now and then how long no worker was there."""
        tasks = (Task(f"chunk {chunk}", (kind, chunk, list(views))) for chunk, views in chunks.items())
        with closing(self._workers.run(kind, tasks)) as answers:
            for answer in answers:
                yield PassReport(others_s=answer.seconds) if isinstance(answer, Waited) else self._taken(answer)

    def _taken(self, answer: Answer) -> PassReport:
        """What a chunk has taken.

        Raises:
            AllAbsentError: the worker found no image where others are found; as of `embed_missing`.
        """
        result = answer.result
        if result["hardware"] not in self._hardware:
            self._hardware.add(result["hardware"])
            if len(self._hardware) == 2:  # towers round differently
                kinds = " and ".join(sorted(self._hardware))
                self._on_note(f"workers differ ({kinds}): the last bits of a chunk depend on who made it")
        if result["max_images"]:
            self.max_images = min(self.max_images or result["max_images"], result["max_images"])
        if result["deviation"]:
            found = Deviation(**result["deviation"])
            self.deviation = max(self.deviation or found, found, key=lambda deviation: deviation.worst)
        report, (_, chunk, _) = PassReport(**result["report"]), answer.task.arguments
        if is_all_absent(report) and sees_some_image(self._cache, self._reader(), self._cache.pending_rows(chunk)):
            raise AllAbsentError(
                f"Dask worker {answer.worker}: no image of {answer.task.name} is there, but this command sees some: "
                "give all workers the images under the same paths, then run it again"
            )
        return report


@contextmanager
def workers_of(job: CacheJob, num_views: int, on_note: OnNote) -> Iterator[PassWorkers]:
    """The workers of the cluster that `--scheduler` names, ready for the pass.

    Raises:
        DistillError: no scheduler is there.
    """
    encoder, settings = job.encoder, job.settings
    output = settings.output.absolute()
    order = PassOrder(
        settings=replace(settings, output=output, model=encoder.model, pretrained=encoder.pretrained),
        sources=tuple(job.sources_of(job.output.require().info)),
        num_views=num_views,
        teacher_sha256=job.teacher_sha256,
    )
    with (
        connected(settings, settings.device, on_note) as cluster,
        cluster.workers(f"cache {output}", order) as workers,
    ):
        yield PassWorkers(workers, job, num_views, on_note)
