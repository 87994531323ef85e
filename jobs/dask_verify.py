"""Verification of a cache on a Dask cluster: workers check chunks, the driver everything else.

Workers only say which chunks are at fault. The driver checks these again, so all faults have the words of one process,
and a worker that sees another cache than the driver has nothing marked for repair.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..cache.errors import CacheError, ChunkId, Fault
from ..cache.format import CacheInfo
from ..cache.location import Location
from ..cache.read.cache import Cache
from ..cache.read.verify import CHECKS, CheckChunks, CheckName
from .dask_cluster import Answer, OnNote, Order, Task, Workers, cache_of_worker, connected
from .settings.verify import VerifySettings

CHUNKS_PER_TASK = 8  # of 16 MB or less, so that Dask's own work is small beside them


@dataclass(frozen=True, kw_only=True)
class VerifyOrder(Order):
    """What a worker must know of a verification.

    Attributes:
        path: of the cache, absolute.
        info: its metadata.
    """

    path: Location
    info: CacheInfo

    def open(self, num_cores: int, opened: ExitStack) -> Callable[..., Any]:
        """As of `Order`."""
        return partial(_first_faults, cache_of_worker(self.path, self.info))


def _first_faults(cache: Cache, check: CheckName, first: int, chunks: list[ChunkId]) -> dict[int, str]:
    """The first fault of each chunk that has one, by number; the first chunk has the number `first`."""
    faults = {i: next(CHECKS[check](cache, chunk), None) for i, chunk in enumerate(chunks, first)}
    return {i: fault.message for i, fault in faults.items() if fault}


class _ChecksOnWorkers:
    """Checks of chunks on a cluster, for `verify`."""

    def __init__(self, workers: Workers, cache: Cache) -> None:
        self._workers, self._cache = workers, cache

    def __call__(self, check: CheckName, chunks: Sequence[ChunkId], on_chunk: Callable[[], None]) -> list[Fault]:
        """As of `CheckChunks`.

        Raises:
            CacheError: a worker finds a fault that the driver does not find, or as of `Workers.run`.
        """
        damaged: dict[int, str] = {}
        tasks = (self._task(check, first, chunks) for first in range(0, len(chunks), CHUNKS_PER_TASK))
        with closing(self._workers.run("verify", tasks)) as answers:
            for answer in answers:
                if not isinstance(answer, Answer):
                    continue
                damaged |= {i: f"Dask worker {answer.worker}: {message}" for i, message in answer.result.items()}
                for _ in answer.task.arguments[2]:
                    on_chunk()
        return [fault for i in sorted(damaged) for fault in self._faults(check, chunks[i], damaged[i])]

    def _task(self, check: CheckName, first: int, chunks: Sequence[ChunkId]) -> Task:
        part = list(chunks[first : first + CHUNKS_PER_TASK])
        ends = " to ".join(dict.fromkeys(map(self._cache.arrays.chunk_key, (part[0], part[-1]))))
        return Task(f"the check of {ends}", (check, first, part))

    def _faults(self, check: CheckName, chunk: ChunkId, seen: str) -> list[Fault]:
        faults = list(CHECKS[check](self._cache, chunk))
        if not faults:
            raise CacheError(
                f"{seen}, but this command finds no fault there: give all workers the same {self._cache.path}, no "
                "copy of it, then run it again"
            )
        return faults


@contextmanager
def checks_on_workers(settings: VerifySettings, cache: Cache, on_note: OnNote) -> Iterator[CheckChunks]:
    """Checks of chunks on the cluster that `--scheduler` names.

    Raises:
        DistillError: no scheduler is there.
    """
    path = settings.cache.absolute()
    with (
        connected(settings, settings.device, on_note) as cluster,
        cluster.workers(f"verify {path}", VerifyOrder(path=path, info=cache.info)) as workers,
    ):
        yield _ChecksOnWorkers(workers, cache)
