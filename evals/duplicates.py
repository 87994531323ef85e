"""Near-duplicate images in one cache, or shared by two caches, by the cosines of their embeddings.

Cosines are exact and computed block by block, so memory is that of a few blocks and 20 bytes an image. Q queries are
compared with N candidates, D features.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cache.format import Status
from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.storage.digests import digests_of
from ..cache.storage.ragged_bytes import RaggedBytes
from .errors import EvalError

COSINES = (0.999, 0.99, 0.97, 0.95)  # that are always counted, beside the threshold
MAX_PAIRS = 10**10  # all of them take minutes on a few cores; if there are more, a sample is drawn
SAMPLE_SIZE = 10_000
READ_ROWS = 16_384  # read at once, in whole chunks
BLOCK_ROWS = 4096  # rows and columns of a block of cosines
UNION_ROWS = 256  # rows of a block whose pairs are united at once
TEXTS_AT_A_TIME = 65_536


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
    """An image and its nearest neighbour."""

    key: str
    other_key: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class DuplicateGroups:
    """Groups of images that are connected by pairs at or above the threshold.

    Attributes:
        num_groups: of two images or more.
        num_pictures: images in all groups; one of each group should be kept.
        largest: images of the largest group.
    """

    num_groups: int
    num_pictures: int
    largest: int

    @classmethod
    def of(cls, sizes: NDArray[np.int64]) -> "DuplicateGroups":
        """Summarise the sizes of all connected components, those of one image included."""
        groups = sizes[sizes > 1]
        return cls(num_groups=len(groups), num_pictures=int(groups.sum()), largest=int(groups.max(initial=0)))


@dataclass(frozen=True, kw_only=True)
class DuplicatesReport:
    """Near-duplicates of the queries: the images of a cache, or those of a second cache.

    Attributes:
        threshold: cosine at or above which images count as duplicates.
        num_pictures: embedded images among which the queries are: those of the second cache, where there are two.
        num_compared: queries; fewer than these images if a sample was drawn.
        num_others: candidates that each query was compared with.
        above: number of queries with a neighbour at or above each cosine.
        share: share of queries with a neighbour at or above the threshold.
        share_low: lower end of the 95 % interval of that share for all images; the share itself without a sample.
        share_high: upper end of that interval.
        groups: None where a sample was drawn, or two caches were compared.
        num_pairs: pairs of an image and its nearest neighbour at or above the threshold, each pair counted once.
        pairs: the nearest of these, nearest first.
        num_captions: captions of the cache, or of the second cache.
        num_repeated_captions: of these, captions that the first cache has word for word; with one cache, captions that
            occur more than once.
        num_same_keys: images with the same key in both caches; None with one cache.
    """

    threshold: float
    num_pictures: int
    num_compared: int
    num_others: int
    above: dict[str, int]
    share: float
    share_low: float
    share_high: float
    groups: DuplicateGroups | None
    num_pairs: int
    pairs: list[DuplicatePair]
    num_captions: int
    num_repeated_captions: int
    num_same_keys: int | None


def find_near_duplicates(
    cache: Cache,
    against: Cache | None = None,
    *,
    threshold: float = 0.97,
    sample: int | None = None,
    seed: int = 0,
    num_listed: int = 10,
    device: torch.device | str = "cpu",
    on_progress: OnProgress = ignore_progress,
) -> DuplicatesReport:
    """Find images with a near neighbour in their cache, or images of a second cache with one in the first.

    Args:
        cache: sealed; e.g. for training.
        against: sealed, of the same tower; e.g. for validation.
        threshold: cosine at or above which images count as duplicates.
        sample: queries, 0 for all; by default all up to 10^10 pairs, else 10,000.
        seed: of the sample.
        num_listed: pairs to list; -1 lists all.
        device: where cosines are computed.
        on_progress: called with the pairs of images of stage `compare`.

    Raises:
        EvalError: caches of two towers, of texts, or without an embedded image.
        CacheError: a cache is not complete, or damaged.
    """
    candidates = _embedded_images(cache)
    images = candidates if against is None else _embedded_images(against)
    if against is not None and (name := cache.info.encoder.difference(against.info.encoder)):
        raise EvalError(
            f"{cache.path} and {against.path} were made by different image towers ({name}): their cosines mean "
            "nothing; cache both with the same --model and --pretrained"
        )
    if sample is None:
        sample = 0 if len(images.rows) * len(candidates.rows) <= MAX_PAIRS else SAMPLE_SIZE
    queries = images
    if 0 < sample < len(images.rows):
        drawn = np.random.default_rng(seed).choice(images.rows, sample, replace=False, shuffle=False)
        queries = _Images(images.cache, np.sort(drawn))
    components = DisjointSets(len(images.rows)) if queries is candidates else None
    cosine, nearest = _nearest_neighbours(
        queries, candidates, against is None, components, threshold, torch.device(device), on_progress
    )
    duplicates = np.flatnonzero(cosine >= threshold)
    duplicates = duplicates[np.argsort(-cosine[duplicates], kind="stable")]
    pairs = duplicates
    if against is None:  # two images that are each other's nearest neighbour are one pair
        ends = np.sort(np.stack([queries.rows[pairs], candidates.rows[nearest[pairs]]]), axis=0)
        pairs = pairs[np.sort(np.unique(ends, axis=1, return_index=True)[1])]
    listed = pairs if num_listed < 0 else pairs[:num_listed]
    low, high = share_interval(len(duplicates), len(cosine), exact=queries is images)
    num_captions, num_repeated = count_repeated_captions(cache, against)
    return DuplicatesReport(
        threshold=threshold,
        num_pictures=len(images.rows),
        num_compared=len(cosine),
        num_others=len(candidates.rows) - (against is None),
        above={f"{least:g}": int((cosine >= least).sum()) for least in sorted({*COSINES, threshold}, reverse=True)},
        share=len(duplicates) / len(cosine),
        share_low=low,
        share_high=high,
        groups=DuplicateGroups.of(components.sizes()) if components else None,
        num_pairs=len(pairs),
        pairs=[
            DuplicatePair(key=key, other_key=other_key, cosine=value)
            for key, other_key, value in zip(
                queries.keys(listed), candidates.keys(nearest[listed]), cosine[listed].tolist(), strict=True
            )
        ],
        num_captions=num_captions,
        num_repeated_captions=num_repeated,
        num_same_keys=None if against is None else count_same_keys(cache, against),
    )


def share_interval(num: int, num_sampled: int, *, exact: bool) -> tuple[float, float]:
    """The 95 % interval of a share that is estimated from a sample (Wilson 1927); the share itself if it is exact.

    >>> [round(end, 3) for end in share_interval(50, 1000, exact=False)]
    [0.038, 0.065]
    """
    share = num / num_sampled
    if exact:
        return share, share
    z2 = 1.96**2
    middle = (share + z2 / (2 * num_sampled)) / (1 + z2 / num_sampled)
    half = math.sqrt(z2) / (1 + z2 / num_sampled)
    half *= math.sqrt(share * (1 - share) / num_sampled + z2 / (4 * num_sampled**2))
    return max(0.0, middle - half), min(1.0, middle + half)


# Nearest neighbours


@dataclass(frozen=True)
class _Images:
    """Some images of a cache, by ascending rows."""

    cache: Cache
    rows: NDArray[np.int64]

    def parts(self) -> list[slice]:
        """Runs of the images that lie in whole chunks."""
        chunk_rows = self.cache.info.chunk_rows
        size = chunk_rows * max(1, READ_ROWS // chunk_rows)
        edges = np.searchsorted(self.rows, np.arange(0, len(self.cache) + size, size)).tolist()
        return [slice(start, stop) for start, stop in pairwise(edges) if start < stop]

    def read(self, part: slice, device: torch.device) -> Tensor:
        """Embeddings of a part `[part, D] float32`, with unit norm again after the rounding to float16."""
        emb = torch.from_numpy(self.cache.emb_rows(self.rows[part])).to(device).float()
        return torch.nn.functional.normalize(emb, dim=1)

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        """The keys of some images, in the order given."""
        return [self.cache.keys(row, row + 1)[0] for row in self.rows[positions].tolist()]


def _embedded_images(cache: Cache) -> _Images:
    if not cache.require_sealed().info.source.images:
        raise EvalError(f"{cache.path} holds texts, no images: pass a cache of images")
    rows = np.flatnonzero(cache.status() == Status.EMBEDDED)
    if not len(rows):
        raise EvalError(f"{cache.path} has no embedded image")
    return _Images(cache, rows)


def _nearest_neighbours(
    queries: _Images,
    candidates: _Images,
    one_cache: bool,
    components: "DisjointSets | None",
    threshold: float,
    device: torch.device,
    on_progress: OnProgress,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosine `[Q]` of each query's nearest neighbour, and its position `[Q]` among the candidates; never itself.

    With `components`, the queries are the candidates: each pair of parts is multiplied once and serves both ways.
    """
    cosine = torch.full((len(queries.rows),), -torch.inf, device=device)
    nearest = torch.zeros(len(queries.rows), dtype=torch.int64, device=device)

    def keep_better(at: slice, values: Tensor, positions: Tensor) -> None:
        better = values > cosine[at]
        cosine[at] = torch.where(better, values, cosine[at])
        nearest[at] = torch.where(better, positions, nearest[at])

    parts = [(a, b) for a in queries.parts() for b in candidates.parts() if components is None or b.start >= a.start]
    total = sum((a.stop - a.start) * (b.stop - b.start) for a, b in parts)
    done, loaded, emb = 0, None, torch.empty(0)
    for a, b in parts:
        if loaded != a:
            loaded, emb = a, queries.read(a, device)
        candidate_emb = emb if components and a == b else candidates.read(b, device)
        for i in _blocks(a):
            for j in _blocks(b):
                block = emb[i.start - a.start : i.stop - a.start] @ (
                    candidate_emb[j.start - b.start : j.stop - b.start].T
                )
                if one_cache:
                    itself = np.equal.outer(queries.rows[i], candidates.rows[j])
                    block[torch.from_numpy(itself).to(device)] = -torch.inf
                best = block.max(1)
                keep_better(i, best.values, best.indices + j.start)
                if components:
                    _unite(components, block >= threshold, i.start, j.start)
                    if a != b:
                        best = block.max(0)
                        keep_better(j, best.values, best.indices + i.start)
        done += (a.stop - a.start) * (b.stop - b.start)
        on_progress(Progress("compare", done, total))
    return cosine.cpu().numpy(), nearest.cpu().numpy()


def _blocks(part: slice) -> Iterator[slice]:
    for start in range(part.start, part.stop, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, part.stop))


# Groups


class DisjointSets:
    """Disjoint sets of N elements under unions of pairs (union-find), on arrays of pairs.

    >>> sets = DisjointSets(6)
    >>> sets.unite(np.array([4, 1]), np.array([5, 2]))
    >>> sets.unite(np.array([2]), np.array([5]))
    >>> sets.sizes().tolist()
    [1, 4, 1]
    """

    def __init__(self, num: int) -> None:
        self._root = np.arange(num)  # of each element; a root is its own

    def unite(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        """Unite the sets of pairs `[P]`, `[P]`: the larger root gets the smaller one, until both ends have one root."""
        while len(a := a[apart := self._root[a] != self._root[b]]):
            b = b[apart]
            roots = self._root[a], self._root[b]
            np.minimum.at(self._root, np.maximum(*roots), np.minimum(*roots))
            while not np.array_equal(up := self._root[self._root], self._root):
                self._root = up

    def sizes(self) -> NDArray[np.int64]:
        """Number of elements of each set, in the order of their smallest elements."""
        counts = np.bincount(self._root)
        return counts[counts > 0]


def _unite(components: DisjointSets, near: Tensor, row: int, column: int) -> None:
    """Unite the near pairs of a block, a million at most at once: among copies of one image every pair is near."""
    if near.any():
        for start in range(0, len(near), UNION_ROWS):
            pairs = near[start : start + UNION_ROWS].nonzero().cpu().numpy()
            components.unite(pairs[:, 0] + row + start, pairs[:, 1] + column)


# Captions and keys


def count_repeated_captions(cache: Cache, against: Cache | None = None) -> tuple[int, int]:
    """Number of captions of a cache, and how many of them occur in it more than once.

    With a second cache: number of its captions, and how many of them the first cache has word for word.
    """
    digests, counts = np.unique(_caption_digests(cache), return_counts=True)
    if against is None:
        return int(counts.sum()), int(counts[counts > 1].sum())
    other_digests = _caption_digests(against)
    return len(other_digests), int(np.isin(other_digests, digests).sum())


def count_same_keys(cache: Cache, against: Cache) -> int:
    """Number of images of the second cache whose key the first has, too."""
    digests, other_digests = (_digests(each.keys, len(each)) for each in (cache, against))
    return int(np.isin(other_digests, digests).sum())


def _caption_digests(cache: Cache) -> NDArray[np.bytes_]:
    return _digests(cache.captions, cache.info.num_captions)


def _digests(read: Callable[[int, int], list[str]], num: int) -> NDArray[np.bytes_]:
    """Digests `[num]` of 16 bytes each, of the texts that `read(start, stop)` gives."""
    parts = [digests_of(RaggedBytes.of([]))] + [
        digests_of(RaggedBytes.of([text.encode() for text in read(start, min(start + TEXTS_AT_A_TIME, num))]))
        for start in range(0, num, TEXTS_AT_A_TIME)
    ]
    return np.concatenate(parts).view("S16").ravel()
