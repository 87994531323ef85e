"""Choice of how many lists an index reads and how many rows it scores again, by its recall against exact search.

Half of the queries choose, the other half measures. Q queries, L lists.
"""

from dataclasses import dataclass

import numpy as np

from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from .exact import ExactIndex
from .ivf import Layout, Lists
from .nearest import Floats, best_first, exact_scores
from .rows import resident_rows

K = 10  # recall@10
DEPTHS = (10, 20, 30, 50, 80, 120, 200, 400, 800, 1600)
QUERIES_AT_A_TIME = 64
MARGIN = 0.2  # of what the target leaves to 1, on top of it: other queries than those that choose should reach it, too


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Settings of a search, and what they give.

    Attributes:
        num_probes: lists to read.
        depth: rows to score again.
        recall: recall@10 of the queries that did not choose.
        num_queries: of these.
    """

    num_probes: int
    depth: int
    recall: float
    num_queries: int


def tune(
    cache: Cache,
    layout: Layout,
    lists: Lists,
    queries: Floats,
    target: float,
    on_progress: OnProgress = ignore_progress,
) -> Tuned:
    """Choose the fewest lists and rows that reach a recall@10.

    Args:
        cache: of N images.
        layout: of the index.
        lists: the same, opened.
        queries: `[Q, D]`, of at least 2 texts, in random order.
        target: recall@10, above 0, at most 1.
        on_progress: called in stage `compare` with the rows of the exact search, then in stage `measure` with the
            searches by the index; how many there will be is not known.
    """
    target += (1 - target) * MARGIN
    k = min(K, int((layout.lists >= 0).sum()))
    right = ExactIndex(cache).search(queries, k, on_progress=on_progress)[1]
    choosing = len(queries) // 2
    # The list of each right answer, in the order in which the query reads lists, tells which probes find it.
    order = np.argsort(-(queries[:choosing] @ layout.centroids.T), axis=1, kind="stable")
    place = np.argsort(order, axis=1)  # [Q, L]
    needed = np.sort(np.take_along_axis(place, layout.lists[right[:choosing]].astype(np.int64), axis=1).ravel()) + 1
    probes = int(needed[min(len(needed) - 1, int(np.ceil(target * len(needed))))])
    rows = resident_rows(cache, check=False)
    num_searches = 0

    def recall(num_probes: int, depth: int, part: slice) -> float:
        nonlocal num_searches
        hits = 0
        for start in range(0, len(queries[part]), QUERIES_AT_A_TIME):
            block = slice(start, start + QUERIES_AT_A_TIME)
            found = lists.candidates(queries[part][block], depth, num_probes)
            for query, candidates, expected in zip(queries[part][block], found, right[part][block], strict=True):
                own = np.unique(candidates[candidates >= 0])
                hits += len(np.intersect1d(best_first(exact_scores(query, rows.take(own)), own, k)[1], expected))
            num_searches += len(found)
            on_progress(Progress("measure", num_searches))
        return hits / right[part].size

    depths = sorted({min(max(depth, k), len(layout.lists)) for depth in DEPTHS})
    while True:
        for depth in depths:
            if recall(probes, depth, slice(0, choosing)) >= target:
                break
        else:
            if probes < lists.num_lists:  # the codes lose what the lists would find: read more of them
                probes = min(lists.num_lists, probes + max(1, probes // 4))
                continue
        return Tuned(
            num_probes=probes,
            depth=depth,
            recall=recall(probes, depth, slice(choosing, None)),
            num_queries=len(queries) - choosing,
        )
