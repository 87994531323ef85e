"""Inverted file (IVF) over the image embeddings of a cache: rows near one of L centroids in each list, in few bits.

A search compares the query with the codes of a few lists and scores the best again with the cache's own rows. faiss
reads the lists, memory-mapped. The centroids lie among images, and queries are texts from elsewhere in the space: how
many lists to read is chosen by texts (`tune.py`). N images of D features, Q queries.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cache.format import Status
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.read.identity import embedding_identity
from .codes import products, to_float32
from .codings import Coding, Int8Coding, RabitqCoding
from .errors import SearchError
from .exact import nearest_in_block
from .index_file import IndexInfo, IndexWriter, load_faiss, open_faiss, read_index_file
from .nearest import Floats, Nearest, best_first, exact_scores
from .rows import Rows, resident_rows

MANY_ROWS = 20_000_000  # above, codes of 8 bits are more than most memories hold beside the rows
ROWS_PER_CENTROID = 40  # of the sample that k-means sees; faiss warns below 39
ROUNDS = 10  # of k-means
MAX_LISTS = 2**16
BLOCK_VALUES = 2**23  # products of rows and centroids at once
BLOCK_ROWS = 8192  # that are coded, or compared one by one, at once
READ_BYTES = 32 * 2**20
EXACT_ROWS = 50_000  # so few that are allowed are compared one by one
MIN_K = 10  # of which recall was measured

Span = tuple[int, int]
"""Rows from one to another (exclusive)."""
Assigned = Generator[tuple[Span, NDArray[np.int32]], None, None]
"""Spans in any order, each with the lists of its rows."""
Assign = Callable[[Floats, Sequence[Span]], Assigned]
"""Finds the lists of all rows of some spans, given centroids `[L, D]`."""


@dataclass(frozen=True)
class Layout:
    """Where the rows of an index lie.

    Attributes:
        centroids: `[L, D] float32`.
        coding: of the rows.
        lists: `[N] int32`, of each row; -1 of those that were not embedded.
    """

    centroids: Floats
    coding: Coding
    lists: NDArray[np.int32]


def number_of_lists(num_rows: int) -> int:
    """A power of two near the square root of the number of rows.

    >>> [number_of_lists(num) for num in (1, 300, 10**6, 10**7)]
    [1, 16, 1024, 4096]
    """
    return min(MAX_LISTS, 1 << round(math.log2(max(1, num_rows)) / 2))


def best_coding(num_rows: int) -> type[Coding]:
    """Coding for so many rows: of 8 bits a feature as long as memory holds them.

    >>> best_coding(1_000_000).kind, best_coding(30_000_000).kind
    ('ivf-int8', 'ivf-rabitq')
    """
    return RabitqCoding if num_rows > MANY_ROWS else Int8Coding


class NearestCentroid:
    """Lists of rows: that of the nearest centroid. L centroids."""

    def __init__(self, centroids: Floats) -> None:
        """Take the centroids, `[L, D]`."""
        self._centroids = centroids
        self._half_norms = (centroids.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2
        self._block_rows = max(1, BLOCK_VALUES // len(centroids))

    def __call__(self, emb: NDArray[np.floating]) -> NDArray[np.int32]:
        """The list of each row `[n, D]`."""
        lists = np.empty(len(emb), np.int32)
        for first in range(0, len(emb), self._block_rows):
            rows = slice(first, first + self._block_rows)
            nearest = products(emb[rows], self._centroids)  # [R, L]
            nearest -= self._half_norms  # the least distance is the largest c·x - |c|²/2
            lists[rows] = nearest.argmax(axis=1)
        return lists


def write_lists(
    cache: Cache,
    path: Path,
    on_progress: OnProgress = ignore_progress,
    seed: int = 0,
    coding: type[Coding] | None = None,
    assign: Assign | None = None,
) -> Layout:
    """Write the lists of a cache: k-means on a sample, then two passes over the rows.

    Memory is that of the sample, 12 bytes a row, and the page cache.

    Args:
        cache: sealed.
        path: empty file.
        on_progress: called in stages `train`, `assign` and `write`, the last two with rows.
        seed: of the sample.
        coding: of the rows; by default `best_coding`.
        assign: finds the lists of rows; by default they are found in this process.

    Raises:
        SearchError: nothing was embedded, or faiss is not installed.
        DamagedCacheError: a chunk is absent or damaged.
    """
    faiss = load_faiss()
    embedded = np.flatnonzero(cache.status() == Status.EMBEDDED)
    if not len(embedded):
        raise SearchError(f"{cache.path} has no embedded image: there is nothing to search")
    num_lists, num = number_of_lists(len(embedded)), len(cache)
    rows = resident_rows(cache, check=True)
    on_progress(Progress("train", 0, ROUNDS))
    rng = np.random.default_rng(seed)
    drawn = rng.choice(embedded, min(len(embedded), ROWS_PER_CENTROID * num_lists), replace=False, shuffle=False)
    sample = to_float32(rows.take(np.sort(drawn)))
    learned = (coding or best_coding(len(embedded))).learned(sample, seed)
    kmeans = faiss.Clustering(cache.info.encoder.dim, num_lists)
    kmeans.niter, kmeans.seed, kmeans.min_points_per_centroid = ROUNDS, seed + 1, 1
    kmeans.max_points_per_centroid = 2 * ROWS_PER_CENTROID
    kmeans.train(sample, faiss.IndexFlatL2(cache.info.encoder.dim))
    centroids = faiss.vector_to_array(kmeans.centroids).reshape(num_lists, -1)
    on_progress(Progress("train", ROUNDS, ROUNDS))

    lists = np.full(num, -1, np.int32)
    is_embedded = np.zeros(num, np.bool_)
    is_embedded[embedded] = True
    step = max(1, READ_BYTES // (cache.info.encoder.dim * 2 * cache.info.chunk_rows)) * cache.info.chunk_rows
    spans = [(start, min(start + step, num)) for start in range(0, num, step)]

    def assign_here(centroids: Floats, spans: Sequence[Span]) -> Assigned:
        nearest = NearestCentroid(centroids)
        yield from ((span, nearest(rows.read(*span))) for span in spans)

    num_assigned = 0
    with closing((assign or assign_here)(centroids, spans)) as assigned:
        for (start, stop), found in assigned:
            lists[start:stop] = np.where(is_embedded[start:stop], found, -1)
            num_assigned += stop - start
            on_progress(Progress("assign", num_assigned, num))

    sizes = np.bincount(lists[embedded], minlength=num_lists).astype(np.int64)
    encode = learned.encoder(faiss, centroids)
    with IndexWriter(path, type(learned), learned.centroids(centroids), sizes) as writer:
        for start, stop in spans:
            kept = np.flatnonzero(is_embedded[start:stop])
            emb, own = rows.read(start, stop)[kept], lists[start + kept].astype(np.int64)
            for first in range(0, len(kept), BLOCK_ROWS):
                part = slice(first, first + BLOCK_ROWS)
                writer.add(own[part], encode(to_float32(emb[part]), own[part]), start + kept[part])
            on_progress(Progress("write", stop, num))
    return Layout(centroids, learned, lists)


class Lists:
    """The lists of an index, opened: candidates for a query from a few of them. Searches may run in several threads."""

    def __init__(self, path: Path, coding: Coding) -> None:
        """Map the lists.

        Args:
            path: what `write_lists` wrote, or an index file that was checked.
            coding: of the rows.

        Raises:
            SearchError: faiss is absent or does not read it.
        """
        self._faiss = load_faiss()
        self._index = open_faiss(path)
        self._index.parallel_mode = 1  # the lists of a query are divided among threads: most searches have one query
        self._coding = coding
        self.num_lists: int = self._index.nlist

    def candidates(
        self, queries: Floats, num: int, num_probes: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Rows whose codes are nearest to each query, `[Q, num] int64`; -1 where the lists that are read have fewer.

        Args:
            queries: `[Q, D]`.
            num: rows to find.
            num_probes: lists to read.
            allowed: `[N] bool`.
        """
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        selector = None if bits is None else self._faiss.IDSelectorBitmap(bits)
        parameters = self._coding.parameters(self._faiss, num_probes, selector)
        found: NDArray[np.int64] = self._index.search(self._coding.queries(queries), num, params=parameters)[1]
        return found


class IvfIndex:
    """An index file of a cache: as `ExactIndex`, but it finds most of the nearest images, and their exact cosines.

    Attributes:
        rows: the embeddings of the cache, by which candidates are scored.
    """

    def __init__(self, cache: Cache, file: Path) -> None:
        """Open an index.

        Args:
            cache: sealed, of N images, that the index was built from.
            file: written by `clipglot index`.

        Raises:
            SearchError: no index, a damaged one, or that of another cache or another state of this one.
            DamagedCacheError: a chunk of the cache is absent or of the wrong size.
        """
        opened = read_index_file(file)
        self.info: IndexInfo = opened.info
        if self.info.cache != embedding_identity(cache) or self.info.dim != cache.info.encoder.dim:
            raise SearchError(
                f"{file} is the index of another cache, or {cache.path} was appended to or made again since: build it "
                f"with `clipglot index {cache.path} -o FILE`"
            )
        self._file, self._cache = file, cache
        self._embedded = cache.status() == Status.EMBEDDED
        self.rows: Rows = resident_rows(cache, check=False)
        self._lists = Lists(file, opened.coding)

    def search(
        self, queries: Floats, k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Exact cosines and rows of the k images found for each query, best first, of equal ones the lower row first.

        Args:
            queries: `[Q, D] float32`, unit norm.
            k: images to find, at least 1.
            allowed: `[N] bool`, images to choose from; by default all that are embedded. Few are compared one by
                one; of more, the more lists are read, the fewer they are.

        Returns:
            `[Q, K] float32` and `[Q, K] int64`, where K is k or the number of images to choose from if that is less.

        Raises:
            SearchError: the index names rows that the cache does not have.
        """
        chosen = self._embedded if allowed is None else self._embedded & allowed
        num_chosen = int(chosen.sum())
        num = min(k, num_chosen)
        if not num or not len(queries):
            return np.empty((len(queries), num), np.float32), np.empty((len(queries), num), np.int64)
        if num_chosen <= EXACT_ROWS or num > num_chosen // 4:
            return self._search_some(queries, num, np.flatnonzero(chosen))
        share = num_chosen / self.info.num_rows
        probes = int(np.ceil(self.info.num_probes / np.sqrt(min(1.0, share))))
        depth = min(num_chosen, int(np.ceil(self.info.depth * max(num, MIN_K) / MIN_K)))
        scores, rows = np.empty((len(queries), num), np.float32), np.empty((len(queries), num), np.int64)
        left = np.arange(len(queries))
        while len(left):
            probes = min(probes, self._lists.num_lists)
            found = self._lists.candidates(queries[left], depth, probes, None if allowed is None else chosen)
            short = []
            for i, candidates in zip(left.tolist(), found, strict=True):
                own = np.unique(candidates[candidates >= 0])
                if len(own) and own[-1] >= len(chosen):
                    raise SearchError(f"{self._file} names row {own[-1]:,} of {len(chosen):,}: build the index again")
                own = own[chosen[own]]
                if len(own) >= num:
                    scores[i], rows[i] = best_first(exact_scores(queries[i], self.rows.take(own)), own, num)
                else:
                    short.append(i)
            if short and probes == self._lists.num_lists:
                raise SearchError(f"{self._file} lacks rows of {self._cache.path}: build the index again")
            left, probes = np.array(short, np.int64), probes * 4
        return scores, rows

    def _search_some(self, queries: Floats, num: int, rows: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
        """Compare queries with each of some rows."""
        nearest = Nearest(queries, num)
        for start in range(0, len(rows), BLOCK_ROWS):
            part = rows[start : start + BLOCK_ROWS]
            nearest_in_block(nearest, queries, part, self.rows.take(part), np.ones(len(part), np.bool_))
        return nearest.result()
