"""The caching pass on a Dask cluster; the only module that imports `distributed`.

The driver (`Workers`) submits one task a missing chunk. A worker loads the towers at its first task and keeps them,
with its decoding processes, for the next (`PassPlugin`). Only paths, chunk numbers and counts travel through Dask:
images and embeddings go between workers and the store. The store alone says what is done, so the driver may be started
again.
"""

import logging
import multiprocessing
import os
import platform
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

import torch
from distributed import Client, Future, KilledWorker, Nanny, Scheduler, Security, SpecCluster, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from .. import __version__
from ..cache.errors import CacheError
from ..cache.format import SourceInfo
from ..cache.read.cache import Cache
from ..cache.write.absent_images import AllAbsentError, is_all_absent, sees_some_image
from ..cache.write.decode_pool import BlockReader
from ..cache.write.embed import OnReport, decoder_of, embed_chunks, stop_if_all_absent
from ..cache.write.image_reader import reader_of
from ..cache.write.report import PassReport
from ..cache.write.seal import seal
from ..cache.write.text_only import embed_text_chunk
from ..cache.write.text_targets import captions_of, embed_text_target_chunk, missing_text_target_chunks
from ..cache.write.views import MissingViews, missing_views
from ..distill.cpu import num_usable_cores
from ..distill.device import resolve_device
from ..distill.errors import DistillError
from ..distill.provenance import encoder_info, require_same_encoder
from ..encoders.errors import EncoderError
from ..encoders.image_queue import Deviation, ImageQueue
from .cache_job import CacheJob, load_towers
from .settings.cache import CacheSettings

LOCAL = "local"
LOOPBACK = "127.0.0.1"
# On Ctrl-C and SIGTERM, which a whole group of processes gets, the driver stops its workers.
DEAF = "import signal; [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]"
GPU = "GPU"  # the resource by which workers say that they have one
TASKS_PER_WORKER = 2  # submitted: one that runs, and one that waits for it
CONNECT_S, CLOSE_S, POLL_S = 20.0, 5.0, 1.0
SILENT_S = 30.0  # without a worker, until the user is told
LOST = (OSError, TimeoutError, CancelledError)  # what a client raises when its scheduler is gone
Kind = Literal["teach", "embed", "texts"]


@dataclass(frozen=True, kw_only=True)
class PassOrder:
    """What a worker must know of a pass.

    Attributes:
        version: of clipglot, the driver's.
        settings: of the pass; paths are absolute.
        sources: of the cache, by the paths under which the driver finds them.
        num_views: that the cache shall have.
        teacher_sha256: of the text tower, if there is one.
    """

    version: str
    settings: CacheSettings
    sources: tuple[SourceInfo, ...]
    num_views: int
    teacher_sha256: str | None


class PassPlugin(WorkerPlugin):  # type: ignore[misc]  # Dask has no types
    """What a worker keeps from one chunk of a pass to the next."""

    def __init__(self, order: PassOrder) -> None:
        self.order = order

    def setup(self, worker: Any) -> None:
        """Prepare for the first task, which loads the towers: that takes longer than a worker may be silent."""
        self._lock = threading.Lock()
        self._embedder: _Embedder | None = None

    def teardown(self, worker: Any) -> None:
        """Free the towers and end the decoding processes, once the chunk that is under way is written."""
        threading.Thread(target=self._close, name="close pass").start()

    def embed(self, kind: Kind, chunk: int, views: list[int], num_cores: int) -> dict[str, Any]:
        """Embed and write a chunk, one at a time; after an error, everything is opened anew."""
        with self._lock:
            try:
                self._embedder = self._embedder or _Embedder(self.order, num_cores)
                return self._embedder.embed(kind, chunk, tuple(views))
            except BaseException:
                self._drop()
                raise

    def _close(self) -> None:
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._embedder:
            self._embedder.opened.close()
        self._embedder = None


class _Embedder:
    """The towers, the cache and the decoding processes of a worker."""

    def __init__(self, order: PassOrder, num_cores: int) -> None:
        if order.version != __version__:
            raise CacheError(f"has clipglot {__version__}, the command has {order.version}: install the same version")
        settings, self._num_cores, self.opened = order.settings, num_cores, ExitStack()
        torch.set_num_threads(num_cores)  # Dask sets one, whatever cores a worker has
        self._device = resolve_device(settings.device)
        tower, teacher = load_towers(settings, self._device)
        self._encode_texts: Any = teacher.encode if teacher else None
        self._cache = cache = Cache(settings.output, read_only=False)
        require_same_encoder(cache.info.encoder, encoder_info(tower), "the tower that it loads")
        if teacher and teacher.weights_sha256 != order.teacher_sha256:
            raise CacheError(f"has another text tower of {settings.model}: give it the weights that the command has")
        self._queue = ImageQueue(tower)
        if settings.images:
            rows = [cache.pending_rows(chunk) for chunk in missing_views(cache, order.num_views)]
            reader = reader_of(cache, sources=order.sources, rows=rows)
            num_decoders = settings.num_workers or num_cores * settings.decoders_per_core
            self._decoder = self.opened.enter_context(decoder_of(cache, reader, num_decoders, order.num_views))

    def embed(self, kind: Kind, chunk: int, views: tuple[int, ...]) -> dict[str, Any]:
        """Embed and write a chunk; returns counts, and what the user is told of this worker."""
        torch.set_num_threads(self._num_cores)  # a setting of the thread, and Dask may take another one
        if kind == "embed":
            report = embed_chunks(self._cache, self._queue, self._decoder, {chunk: views})
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


def embed_chunk(plugin: str, kind: Kind, chunk: int, views: list[int], num_on_machine: int) -> dict[str, Any]:
    """Task of a worker: embed and write a chunk.

    Args:
        plugin: name of the pass's `PassPlugin`.
        kind: of the chunk.
        chunk: its number.
        views: to make.
        num_on_machine: workers of a machine. They share its cores, unless Dask gave this one several threads.

    Raises:
        CacheError: the message names the worker.
    """
    worker = get_worker()
    # A nanny makes its worker a daemon, which may have no children. The decoding processes end with the worker.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    num_threads = worker.state.nthreads
    num_cores = num_threads if num_threads > 1 else max(1, num_usable_cores() // num_on_machine)
    try:
        result: dict[str, Any] = worker.plugins[plugin].embed(kind, chunk, views, num_cores)
    except (CacheError, DistillError, EncoderError) as error:
        raise CacheError(f"Dask worker {worker.name} on {socket.gethostname()}: {error}") from None
    return result | {"worker": f"{worker.name} on {socket.gethostname()}"}


class Workers:
    """The workers of a cluster, which embed what is missing of a prepared cache.

    Attributes:
        max_images: images that fitted at once into the memory of the worker with the least; None if every batch fitted.
        deviation: of features in half precision, on the first batch of the worker with the largest.
    """

    def __init__(
        self, client: Client, plugin: str, job: CacheJob, num_views: int, on_note: Callable[[str], None]
    ) -> None:
        self._client, self._plugin, self._on_note = client, plugin, on_note
        self._cache, self._num_views = job.output.require(), num_views
        self._reader: Callable[[], BlockReader] = lambda: reader_of(
            self._cache, sources=job.sources_of(self._cache.info)
        )
        self._address = client.scheduler.address
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
                with suppress(*LOST):
                    self._client.run(_finish_chunk, self._plugin)
                raise
        cache.arrays.refresh()
        seal(cache, self._num_views, changed=bool(missing))
        return replace(report, wall_s=time.perf_counter() - started)

    def _run(self, kind: Kind, chunks: MissingViews) -> Generator[PassReport, None, None]:
        """Have chunks embedded; yield what each has taken, and now and then how long no worker was there.

        Raises:
            CacheError: a chunk failed, or the scheduler does not answer any more.
        """
        waiting, running, finished = iter(chunks.items()), dict[Future, int](), SimpleQueue[Future]()
        family, began = f"clipglot-{kind}-{uuid.uuid4().hex}", time.monotonic()
        workers, looked_at, here_at, is_told = list[Mapping[str, Any]](), began - POLL_S, began, False
        try:
            while True:
                if self._client.status != "running":
                    raise self._lost()
                if (now := time.monotonic()) - looked_at >= POLL_S:
                    workers = list(self._client.scheduler_info(n_workers=-1)["workers"].values())
                    if workers:
                        here_at, is_told = now, False
                    else:
                        yield PassReport(others_s=now - max(looked_at, began))
                    if now - here_at > SILENT_S and not is_told:
                        is_told = True
                        self._on_note(f"no worker at {self._address} for {SILENT_S:.0f} s: waiting for one to join")
                    looked_at = now
                resources = {GPU: 1} if workers and all(w["resources"].get(GPU) for w in workers) else None
                num_on_machine = max(Counter(worker["host"] for worker in workers).values(), default=1)
                for chunk, views in islice(waiting, max(0, TASKS_PER_WORKER * max(1, len(workers)) - len(running))):
                    task = (self._plugin, kind, chunk, list(views), num_on_machine)
                    how: dict[str, Any] = {"key": (family, chunk), "pure": False, "resources": resources}
                    running[future := self._client.submit(embed_chunk, *task, **how)] = chunk
                    future.add_done_callback(finished.put)
                if not running:
                    return
                with suppress(Empty):
                    future = finished.get(timeout=POLL_S)
                    yield self._taken(future, running.pop(future))
        finally:
            with suppress(*LOST):
                if self._client.status == "running":
                    self._client.cancel(list(running))

    def _lost(self) -> CacheError:
        return CacheError(
            f"the Dask scheduler at {self._address} is gone; the chunks that were written are kept: start it again, "
            "then the same command"
        )

    def _taken(self, future: Future, chunk: int) -> PassReport:
        """What a chunk has taken.

        Raises:
            CacheError: it failed, or the scheduler is lost.
            AllAbsentError: the worker found no image where others are found; as of `embed_missing`.
        """
        try:
            result = future.result()
        except CancelledError:
            raise self._lost() from None
        except KilledWorker as error:
            raise CacheError(
                f"chunk {chunk} ended one Dask worker after another, the last one {error.last_worker.address}, perhaps "
                "for lack of memory: see the workers' logs, then run the same command again"
            ) from None
        except ModuleNotFoundError as error:
            raise _lacking(error) from None
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
        report = PassReport(**result["report"])
        if is_all_absent(report) and sees_some_image(self._cache, self._reader(), self._cache.pending_rows(chunk)):
            raise AllAbsentError(
                f"Dask worker {result['worker']}: no image of chunk {chunk} is there, but this command sees some: "
                "give all workers the images under the same paths, then run it again"
            )
        return report


def _finish_chunk(plugin: str, dask_worker: Any) -> None:
    """Return when a worker is done with the chunk that it is at."""
    if plugin in dask_worker.plugins:
        with dask_worker.plugins[plugin]._lock:
            pass


@contextmanager
def workers_of(job: CacheJob, num_views: int, on_note: Callable[[str], None]) -> Iterator[Workers]:
    """The workers of the cluster that `--scheduler` names, ready for the pass.

    Raises:
        DistillError: no scheduler is there.
    """
    encoder, settings = job.encoder, job.settings
    output = settings.output.absolute()
    order = PassOrder(
        version=__version__,
        settings=replace(settings, output=output, model=encoder.model, pretrained=encoder.pretrained),
        sources=tuple(job.sources_of(job.output.require().info)),
        num_views=num_views,
        teacher_sha256=job.teacher_sha256,
    )
    plugin = f"clipglot {output}"  # so that the pass of a driver that died is replaced
    with _quiet(), _connected(settings) as client:
        if settings.scheduler != LOCAL or find_spec("bokeh"):
            on_note(f"Dask's dashboard: {client.dashboard_link}")
        try:
            client.register_plugin(PassPlugin(order), name=plugin)
        except Exception as error:  # of a worker, of which Dask keeps the text alone
            raise _lacking(error) from error
        try:
            yield Workers(client, plugin, job, num_views, on_note)
        finally:
            with suppress(*LOST):
                if client.status == "running":
                    client.unregister_worker_plugin(plugin)


def _lacking(error: Exception) -> DistillError:
    remedy = "give its scheduler and workers the packages that the command has"
    return DistillError(f"the Dask cluster cannot take part ({error}): {remedy}")


@contextmanager
def _connected(settings: CacheSettings) -> Iterator[Client]:
    """A client of the scheduler, which is started if it is to be local."""
    named = f"{settings.scheduler}"
    options: dict[str, Any] = {"timeout": CONNECT_S, "set_as_default": False, "name": "clipglot"}
    with ExitStack() as opened:
        try:
            if named == LOCAL:
                client = Client(opened.enter_context(_local_cluster(settings)), **options)
            elif Path(named).is_file():
                client = Client(scheduler_file=named, **options)
            else:
                client = Client(named, **options)
        except (*LOST, ValueError, RuntimeError) as error:
            raise DistillError(
                f"--scheduler {named}: no Dask scheduler answers ({error}): pass its address, e.g. tcp://node1:8786, "
                "the file that it was started with (--scheduler-file), or local"
            ) from error
        try:
            yield client
        finally:
            client.close(timeout=CLOSE_S)  # by default it waits long for a lost scheduler


def _local_cluster(settings: CacheSettings) -> SpecCluster:
    """A scheduler in this process and one worker process a GPU, which only this user's programs can reach."""
    gpus, secret = _gpus() if settings.device != "cpu" else [], Security.temporary()
    common = {"host": LOOPBACK, "protocol": "tls://", "security": secret, "dashboard_address": f"{LOOPBACK}:0"}
    workers = {}
    for i in range(settings.num_local or max(1, len(gpus))):
        options = common | {"nthreads": 1, "memory_limit": 0, "dashboard": False, "preload": [DEAF]}
        options["silence_logs"] = logging.CRITICAL
        if gpus:
            options |= {"resources": {GPU: 1}, "env": {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}}
        workers[i] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": common | {"port": 0, "dashboard": find_spec("bokeh") is not None}}
    return SpecCluster(workers=workers, scheduler=scheduler, security=secret, silence_logs=logging.CRITICAL)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    num, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:num] if named else list(map(str, range(num)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own messages from the terminal: what matters is said by errors and notes."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "tornado", "asyncio")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
