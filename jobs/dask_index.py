"""Assignment of rows to the lists of an index on a Dask cluster: workers read and compare, the driver writes the file.

What travels is the centroids, once to each worker, and 4 bytes a row back.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch  # in the driver, too: `search/codes.py` multiplies by it if it is loaded
from numpy.typing import NDArray

from ..cache.format import CacheInfo
from ..cache.location import Location
from ..cache.read.cache import Cache
from ..search.ivf import Assign, Assigned, NearestCentroid, Span
from ..search.nearest import Floats
from ..search.rows import Rows, StoredRows
from .dask_cluster import Answer, OnNote, Order, Task, cache_of_worker, connected
from .settings.index import IndexSettings


@dataclass(frozen=True, kw_only=True)
class AssignOrder(Order):
    """What a worker must know to assign rows.

    Attributes:
        path: of the cache, absolute.
        info: its metadata.
        centroids: `[L, D]`, of the lists.
    """

    path: Location
    info: CacheInfo
    centroids: Floats

    def open(self, num_cores: int, opened: ExitStack) -> Callable[..., Any]:
        """As of `Order`."""
        rows = StoredRows(cache_of_worker(self.path, self.info))
        return partial(_lists_of, rows, NearestCentroid(self.centroids), num_cores)


def _lists_of(rows: Rows, nearest: NearestCentroid, num_threads: int, start: int, stop: int) -> NDArray[np.int32]:
    """The lists of rows `start` to `stop`."""
    torch.set_num_threads(num_threads)  # a setting of the thread, and Dask sets one
    return nearest(rows.read(start, stop))


@contextmanager
def assignment_on_workers(settings: IndexSettings, cache: Cache, on_note: OnNote) -> Iterator[Assign]:
    """Assignment of rows on the cluster that `--scheduler` names, which waits until there are centroids.

    Raises:
        DistillError: no scheduler is there.
    """
    path = settings.cache.absolute()
    with connected(settings, "auto", on_note) as cluster:

        def assign(centroids: Floats, spans: Sequence[Span]) -> Assigned:
            order = AssignOrder(path=path, info=cache.info, centroids=centroids)
            tasks = (Task(f"the rows from {start:,} to {stop:,}", (start, stop)) for start, stop in spans)
            with (
                cluster.workers(f"index {settings.output.absolute()}", order) as workers,
                closing(workers.run("assign", tasks)) as answers,
            ):
                for answer in answers:
                    if isinstance(answer, Answer):
                        start, stop = answer.task.arguments
                        yield (start, stop), answer.result

        yield assign
