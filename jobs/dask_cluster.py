"""Work on a Dask cluster, divided into tasks; the only module that imports `distributed`.

The driver, a command, gives the workers an `Order` and sends tasks, a few a worker at a time (`Workers`). A worker
opens the order at its first task, and keeps what it has opened for the next ones (`OrderPlugin`). Only small things
travel through Dask: numbers of chunks and lists, counts. Images and embeddings go between workers and the store.
"""

import logging
import os
import socket
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, NamedTuple

from distributed import Client, Future, KilledWorker, Nanny, Scheduler, Security, SpecCluster, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from .. import __version__
from ..cache.errors import CacheError
from ..cache.format import CacheInfo
from ..cache.location import Location
from ..cache.read.cache import Cache
from ..distill.cpu import num_usable_cores
from ..distill.errors import DistillError
from ..encoders.errors import EncoderError
from .settings.cluster import LOCAL, ClusterSettings

LOOPBACK = "127.0.0.1"
# On Ctrl-C and SIGTERM, which a whole group of processes gets, the driver stops its workers.
DEAF = "import signal; [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]"
GPU = "GPU"  # the resource by which workers say that they have one
TASKS_PER_WORKER = 2  # submitted: one that runs, and one that waits for it
CONNECT_S, CLOSE_S, POLL_S = 20.0, 5.0, 1.0
SILENT_S = 30.0  # without a worker, until the user is told
LOST = (OSError, TimeoutError, CancelledError)  # what a client raises when its scheduler is gone
OnNote = Callable[[str], None]


class Order(ABC):
    """What workers must know of some work. Each of them gets it once.

    Attributes:
        takes_gpu: whether a task takes the GPU of its worker.
        kept: what need not be done again, for the message that the scheduler is lost.
    """

    takes_gpu: ClassVar[bool] = False
    kept: ClassVar[str] = ""

    @abstractmethod
    def open(self, num_cores: int, opened: ExitStack) -> Callable[..., Any]:
        """Open on a worker what its tasks need.

        Args:
            num_cores: of the machine, for this worker.
            opened: takes what must be closed.

        Returns:
            A function that does a task, given its arguments. Its result is small.

        Raises:
            CacheError, DistillError, EncoderError: this worker cannot take part; the driver prefixes its name.
        """


class ReplacedError(CacheError):
    """Another driver has given the workers its order in place of this driver's."""


class Task(NamedTuple):
    """A part of the work, for one worker.

    Attributes:
        name: for messages, e.g. "chunk 3".
        arguments: of what `Order.open` returns.
    """

    name: str
    arguments: tuple[Any, ...]


class Answer(NamedTuple):
    """What came of a task.

    Attributes:
        task: that is done.
        result: of what `Order.open` returned.
        worker: that did it, and its machine.
    """

    task: Task
    result: Any
    worker: str


class Waited(NamedTuple):
    """Time in which no worker was there.

    Attributes:
        seconds: since this was last told.
    """

    seconds: float


class OrderPlugin(WorkerPlugin):  # type: ignore[misc]  # Dask has no types
    """An order on a worker, opened from its first task on."""

    def __init__(self, order: Order) -> None:
        self.order, self.version, self.id = order, __version__, uuid.uuid4().hex

    def setup(self, worker: Any) -> None:
        """Prepare for the first task, which opens the order: that can take longer than a worker may be silent."""
        self._lock, self._opened = threading.Lock(), ExitStack()
        self._do: Callable[..., Any] | None = None

    def teardown(self, worker: Any) -> None:
        """Free what is open, once the task that is under way is done."""
        threading.Thread(target=self._close, name="close order").start()

    def do(self, arguments: list[Any], num_cores: int) -> Any:
        """Do a task, one at a time; after an error, everything is opened anew."""
        with self._lock:
            try:
                if self._do is None:
                    if self.version != __version__:
                        raise CacheError(
                            f"has clipglot {__version__}, the command has {self.version}: install the same version"
                        )
                    self._do = self.order.open(num_cores, self._opened)
                return self._do(*arguments)
            except BaseException:
                self._drop()
                raise

    def wait(self) -> None:
        """Return when no task is under way."""
        with self._lock:
            pass

    def _close(self) -> None:
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        self._opened.close()
        self._do = None


def do_task(plugin: str, order_id: str, arguments: list[Any], num_on_machine: int) -> tuple[Any, str]:
    """Do a task on a worker; returns the result, and which worker it is.

    Args:
        plugin: name of the `OrderPlugin`.
        order_id: its id.
        arguments: of the task.
        num_on_machine: workers of a machine. They share its cores, unless Dask gave this one several threads.

    Raises:
        CacheError: the message names the worker.
        ReplacedError: it has another order of that name by now, or none any more.
    """
    worker = get_worker()
    name, num_threads = f"{worker.name} on {socket.gethostname()}", worker.state.nthreads
    num_cores = num_threads if num_threads > 1 else max(1, num_usable_cores() // num_on_machine)
    kept = worker.plugins.get(plugin)
    if kept is None or kept.id != order_id:
        raise ReplacedError(f"Dask worker {name}: another run of this command took its place: wait for its end")
    try:
        return kept.do(arguments, num_cores), name
    except (CacheError, DistillError, EncoderError) as error:
        raise CacheError(f"Dask worker {name}: {error}") from None


def cache_of_worker(path: Location, info: CacheInfo | None = None, *, read_only: bool = True) -> Cache:
    """Open, on a worker, the cache that the driver works on.

    Args:
        path: under which the driver finds it.
        info: its metadata as the driver has read them; by default they are not compared.
        read_only: whether the worker only reads it.

    Raises:
        CacheError: it is not there, or is another one.
    """
    try:
        cache = Cache(path, read_only=read_only)
    except CacheError as error:
        raise CacheError(f"does not see the cache: give all workers {path} under the same path ({error})") from error
    if info is not None and cache.info != info:
        raise CacheError(
            f"the metadata of {path} are others than those that the command has read: give all workers the same cache, "
            "and let no pass change it meanwhile"
        )
    return cache


class Workers:
    """The workers of a cluster, which do the tasks of an order."""

    def __init__(self, client: Client, plugin: str, order: OrderPlugin, on_note: OnNote) -> None:
        self._client, self._plugin, self._on_note = client, plugin, on_note
        self._order_id, self._takes_gpu, self._kept = order.id, order.order.takes_gpu, order.order.kept
        self._address = client.scheduler.address

    def run(self, kind: str, tasks: Iterable[Task]) -> Generator[Answer | Waited, None, None]:
        """Have tasks done, in any order; those of a worker that is lost are done by another one.

        Args:
            kind: of the tasks, as Dask's dashboard shows it.
            tasks: taken from as workers become free.

        Yields:
            What came of each task, and now and then how long no worker was there.

        Raises:
            CacheError: a task failed, or ended one worker after another; or the scheduler does not answer any more.
            DistillError: a worker lacks a package.
        """
        waiting, running, finished = iter(tasks), dict[Future, Task](), SimpleQueue[Future]()
        family, began, numbers = f"clipglot-{kind}-{uuid.uuid4().hex}", time.monotonic(), count()
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
                        yield Waited(now - max(looked_at, began))
                    if now - here_at > SILENT_S and not is_told:
                        is_told = True
                        self._on_note(f"no worker at {self._address} for {SILENT_S:.0f} s: waiting for one to join")
                    looked_at = now
                have_gpus = workers and all(worker["resources"].get(GPU) for worker in workers)
                resources = {GPU: 1} if self._takes_gpu and have_gpus else None
                num_on_machine = max(Counter(worker["host"] for worker in workers).values(), default=1)
                for task in islice(waiting, max(0, TASKS_PER_WORKER * max(1, len(workers)) - len(running))):
                    arguments = (self._plugin, self._order_id, list(task.arguments), num_on_machine)
                    how: dict[str, Any] = {"key": (family, next(numbers)), "pure": False, "resources": resources}
                    running[future := self._client.submit(do_task, *arguments, **how)] = task
                    future.add_done_callback(finished.put)
                if not running:
                    return
                with suppress(Empty):
                    future = finished.get(timeout=POLL_S)
                    yield self._answer(future, running.pop(future))
        finally:
            with suppress(*LOST):
                if self._client.status == "running":
                    self._client.cancel(list(running))

    def finish(self) -> None:
        """Wait until no worker is at a task any more."""
        with suppress(*LOST):
            self._client.run(_finish_task, self._plugin)

    def _lost(self) -> CacheError:
        return CacheError(
            f"the Dask scheduler at {self._address} is gone{self._kept}: start it again, then the same command"
        )

    def _answer(self, future: Future, task: Task) -> Answer:
        try:
            return Answer(task, *future.result())
        except CancelledError:
            raise self._lost() from None
        except KilledWorker as error:
            raise CacheError(
                f"{task.name} ended one Dask worker after another, the last one {error.last_worker.address}, perhaps "
                "for lack of memory: see the workers' logs, then run the same command again"
            ) from None
        except ModuleNotFoundError as error:
            raise _lacking(error) from None


def _finish_task(plugin: str, dask_worker: Any) -> None:
    """Return when a worker is done with the task that it is at."""
    if plugin in dask_worker.plugins:
        dask_worker.plugins[plugin].wait()


class Cluster:
    """A cluster that answers."""

    def __init__(self, client: Client, on_note: OnNote) -> None:
        self._client, self._on_note = client, on_note

    @contextmanager
    def workers(self, name: str, order: Order) -> Iterator[Workers]:
        """The workers, those that join later included, with an order.

        Args:
            name: of the work, with the path of what it works on: the order of a driver that died is replaced.
            order: for them.

        Raises:
            DistillError: a worker lacks a package.
        """
        name, plugin = f"clipglot {name}", OrderPlugin(order)
        try:
            self._client.register_plugin(plugin, name=name)
        except Exception as error:  # of a worker, of which Dask keeps the text alone
            raise _lacking(error) from error
        is_own = True
        try:
            yield Workers(self._client, name, plugin, self._on_note)
        except ReplacedError:
            is_own = False
            raise
        finally:
            with suppress(*LOST):
                if is_own and self._client.status == "running":
                    self._client.unregister_worker_plugin(name)


def _lacking(error: Exception) -> DistillError:
    remedy = "give its scheduler and workers the packages that the command has"
    return DistillError(f"the Dask cluster cannot take part ({error}): {remedy}")


@contextmanager
def connected(settings: ClusterSettings, device: str, on_note: OnNote) -> Iterator[Cluster]:
    """The cluster that `--scheduler` names; a local one is started, and ends with the block.

    Args:
        settings: of a command with `--scheduler`.
        device: that the command is to use: on `cpu`, local workers have no GPU.
        on_note: called with what the user should know.

    Raises:
        DistillError: no scheduler is there.
    """
    scheduler = f"{settings.scheduler}"
    options: dict[str, Any] = {"timeout": CONNECT_S, "set_as_default": False, "name": "clipglot"}
    with _quiet(), ExitStack() as opened:
        try:
            if scheduler == LOCAL:
                client = Client(opened.enter_context(_local_cluster(settings.num_local, device)), **options)
            elif Path(scheduler).is_file():
                client = Client(scheduler_file=scheduler, **options)
            else:
                client = Client(scheduler, **options)
        except (*LOST, ValueError, RuntimeError) as error:
            raise DistillError(
                f"--scheduler {scheduler}: no Dask scheduler answers ({error}): pass its address, e.g. "
                "tcp://node1:8786, the file that it was started with (--scheduler-file), or local"
            ) from error
        try:
            if scheduler != LOCAL or find_spec("bokeh"):
                on_note(f"Dask's dashboard: {client.dashboard_link}")
            yield Cluster(client, on_note)
        finally:
            client.close(timeout=CLOSE_S)  # by default it waits long for a lost scheduler


def _local_cluster(num_local: int | None, device: str) -> SpecCluster:
    """A scheduler in this process and one worker process a GPU, which only this user's programs can reach."""
    gpus, secret = _gpus() if device != "cpu" else [], Security.temporary()
    common = {"host": LOOPBACK, "protocol": "tls://", "security": secret, "dashboard_address": f"{LOOPBACK}:0"}
    workers = {}
    for i in range(num_local or max(1, len(gpus))):
        options = common | {"nthreads": 1, "memory_limit": 0, "dashboard": False, "preload": [DEAF]}
        options["silence_logs"] = logging.CRITICAL
        if gpus:
            options |= {"resources": {GPU: 1}, "env": {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}}
        workers[i] = {"cls": Nanny, "options": options}
    scheduler = {"cls": Scheduler, "options": common | {"port": 0, "dashboard": find_spec("bokeh") is not None}}
    return SpecCluster(workers=workers, scheduler=scheduler, security=secret, silence_logs=logging.CRITICAL)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch  # here, because workers import this module, and not all work needs torch

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
