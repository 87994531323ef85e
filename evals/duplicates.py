"""Near-duplicate images of a cache, and images of one cache that another holds too, by their embeddings alone.

Cosines are exact and computed block by block, so memory is that of a few blocks and 20 bytes an image. Q images are
asked about, each is compared with P others, D features.
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
from ..cache.read.cache import Cache
from ..cache.storage.digests import digests_of
from ..cache.storage.ragged import RaggedBytes
from .errors import EvalError


class Components:
    """N things, joined pair by pair.

    >>> components = Components(6)
    >>> components.join(np.array([4, 1]), np.array([5, 2]))
    >>> components.join(np.array([2]), np.array([5]))
    >>> components.sizes()
    {'num_groups': 1, 'num_pictures': 4, 'largest': 4}
    """

    def __init__(self, num: int) -> None:
        self._root = np.arange(num)  # of each; a root is its own

    def join(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        """Join pairs `[P]`, `[P]`: the larger root goes below the smaller, until each pair has one."""
        while len(a := a[apart := self._root[a] != self._root[b]]):
            b = b[apart]
            roots = self._root[a], self._root[b]
            np.minimum.at(self._root, np.maximum(*roots), np.minimum(*roots))
            while not np.array_equal(up := self._root[self._root], self._root):
                self._root = up

    def sizes(self) -> dict[str, int]:
        """How many groups of two or more there are, how many things in them, and in the largest."""
        counts = np.bincount(self._root, minlength=1)
        groups = counts[counts > 1]
        return {
            "num_groups": len(groups),
            "num_pictures": int(groups.sum()),
            "largest": int(groups.max(initial=0)),
        }


TEXTS_AT_A_TIME = 65_536


def count_repeated_captions(cache: Cache, against: Cache | None = None) -> tuple[int, int]:
    """How many captions a cache has, and how many of these stand there more than once.

    With a second cache, how many that one has, and how many of these stand in the first.
    """
    ours, counts = np.unique(_caption_digests(cache), return_counts=True)
    if against is None:
        return int(counts.sum()), int(counts[counts > 1].sum())
    theirs = _caption_digests(against)
    return len(theirs), int(np.isin(theirs, ours).sum())


def count_same_keys(cache: Cache, against: Cache) -> int:
    """Images of the second cache whose key the first has, too."""
    ours, theirs = (_digests(each.keys, len(each)) for each in (cache, against))
    return int(np.isin(theirs, ours).sum())


def _caption_digests(cache: Cache) -> NDArray[np.bytes_]:
    return _digests(cache.captions, cache.info.num_captions)


def _digests(read: Callable[[int, int], list[str]], num: int) -> NDArray[np.bytes_]:
    parts = [digests_of(RaggedBytes.of([]))] + [
        digests_of(RaggedBytes.of([text.encode() for text in read(start, min(start + TEXTS_AT_A_TIME, num))]))
        for start in range(0, num, TEXTS_AT_A_TIME)
    ]
    return np.concatenate(parts).view("S16").ravel()


MARKS = (0.999, 0.99, 0.97, 0.95)  # cosines that are always counted
MOST_PAIRS = 10**10  # all of them take minutes on a few cores; beyond, a sample is drawn
SAMPLE = 10_000
PART_ROWS = 16_384  # read at once, in whole chunks
BLOCK_ROWS = 4096  # cosines of so many by so many are held
JOINED_ROWS = 256  # of a block


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image and its nearest neighbour."""

    key: str
    other_key: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Images that hang together by pairs at or above the threshold.

    Attributes:
        num_groups: of two images or more.
        num_pictures: in all groups; without `num_groups` of them, the rest would be left.
        largest: images of the largest group.
    """

    num_groups: int
    num_pictures: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class DuplicatesReport:
    """What was compared and what was found.

    Attributes:
        threshold: cosine from which on images count as duplicates.
        num_pictures: embedded images that were asked about: those of the second cache, where there are two.
        num_compared: those that were compared; fewer where a sample was drawn.
        num_others: images that each was compared with.
        above: how many of the compared have a neighbour at or above each cosine.
        share: of the compared, those with a neighbour at or above the threshold.
        share_low: lower end of its 95 % interval for all images; the share itself if all were compared.
        share_high: its upper end.
        groups: None where a sample was drawn, or two caches compared.
        num_pairs: images and their nearest neighbour at or above the threshold, each pair once.
        pairs: the nearest of these, nearest first.
        num_captions: captions that were asked about.
        num_repeated_captions: of these, the ones that stand word for word in the other cache; in one cache, that stand
            there more than once.
        num_same_keys: images of both caches with the same key; None with one cache.
    """

    threshold: float
    num_pictures: int
    num_compared: int
    num_others: int
    above: dict[str, int]
    share: float
    share_low: float
    share_high: float
    groups: Groups | None
    num_pairs: int
    pairs: list[Pair]
    num_captions: int
    num_repeated_captions: int
    num_same_keys: int | None


@dataclass(frozen=True)
class _Images:
    """Some images of a cache, by ascending rows."""

    cache: Cache
    rows: NDArray[np.int64]

    def parts(self) -> list[slice]:
        """Runs of them that lie in whole chunks."""
        chunk = self.cache.info.chunk_rows
        size = chunk * max(1, PART_ROWS // chunk)
        edges = np.searchsorted(self.rows, np.arange(0, len(self.cache) + size, size)).tolist()
        return [slice(a, b) for a, b in pairwise(edges) if a < b]

    def read(self, part: slice, device: torch.device) -> Tensor:
        """Their embeddings `[part, D] float32`, unit norm without the rounding of float16."""
        emb = torch.from_numpy(self.cache.emb_rows(self.rows[part])).to(device).float()
        return torch.nn.functional.normalize(emb, dim=1)

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        """The keys of some of them, in the order given."""
        return [self.cache.keys(row, row + 1)[0] for row in self.rows[positions].tolist()]


def find_near_duplicates(
    cache: Cache,
    against: Cache | None = None,
    *,
    threshold: float = 0.97,
    sample: int | None = None,
    seed: int = 0,
    num_listed: int = 10,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DuplicatesReport:
    """Find images with a near neighbour in their cache, or those of a second cache that have one in the first.

    Args:
        cache: sealed; e.g. that of training.
        against: sealed, of the same tower; e.g. that of validation.
        threshold: cosine from which on images count as duplicates.
        sample: images that are compared with all others, 0 for all; by default all up to 10^10 pairs, else 10,000.
        seed: of the sample.
        num_listed: pairs to list; -1 lists all.
        device: where to multiply.
        on_progress: called with pairs done and to be done.

    Raises:
        EvalError: caches of two towers, of texts, or without an embedded image.
        CacheError: a cache is not complete, or damaged.
    """
    others = _embedded(cache)
    asked = others if against is None else _embedded(against)
    if against is not None and (name := cache.info.encoder.difference(against.info.encoder)):
        raise EvalError(
            f"{cache.path} and {against.path} were made by different image towers ({name}): their cosines mean "
            "nothing; cache both with the same --model and --pretrained"
        )
    if sample is None:
        sample = 0 if len(asked.rows) * len(others.rows) <= MOST_PAIRS else SAMPLE
    compared = asked
    if 0 < sample < len(asked.rows):
        drawn = np.random.default_rng(seed).choice(asked.rows, sample, replace=False, shuffle=False)
        compared = _Images(asked.cache, np.sort(drawn))
    every_pair = against is None and compared is asked
    components = Components(len(asked.rows)) if every_pair else None
    cosine, nearest = _nearest(
        compared, others, against is None, components, threshold, torch.device(device), on_progress
    )
    found = np.flatnonzero(cosine >= threshold)
    found = found[np.argsort(-cosine[found], kind="stable")]
    if against is None:  # two that are each other's nearest are one pair
        ends = np.sort(np.stack([compared.rows[found], others.rows[nearest[found]]]), axis=0)
        found = found[np.sort(np.unique(ends, axis=1, return_index=True)[1])]
    listed = found if num_listed < 0 else found[:num_listed]
    keys, other_keys = compared.keys(listed), others.keys(nearest[listed])
    num_duplicates = int((cosine >= threshold).sum())
    low, high = share_interval(num_duplicates, len(cosine), exact=compared is asked)
    num_captions, num_repeated = count_repeated_captions(cache, against)
    return DuplicatesReport(
        threshold=threshold,
        num_pictures=len(asked.rows),
        num_compared=len(cosine),
        num_others=len(others.rows) - (against is None),
        above={f"{mark:g}": int((cosine >= mark).sum()) for mark in sorted({*MARKS, threshold}, reverse=True)},
        share=num_duplicates / len(cosine),
        share_low=low,
        share_high=high,
        groups=Groups(**components.sizes()) if components else None,
        num_pairs=len(found),
        pairs=[
            Pair(key=key, other_key=other, cosine=value)
            for key, other, value in zip(keys, other_keys, cosine[listed].tolist(), strict=True)
        ],
        num_captions=num_captions,
        num_repeated_captions=num_repeated,
        num_same_keys=None if against is None else count_same_keys(cache, against),
    )


def _embedded(cache: Cache) -> _Images:
    if not cache.require_sealed().info.source.images:
        raise EvalError(f"{cache.path} holds texts, no images: pass a cache of images")
    rows = np.flatnonzero(cache.status() == Status.EMBEDDED)
    if not len(rows):
        raise EvalError(f"{cache.path} has no embedded image")
    return _Images(cache, rows)


def _nearest(
    asked: _Images,
    others: _Images,
    within: bool,
    components: Components | None,
    threshold: float,
    device: torch.device,
    on_progress: Callable[[int, int], None],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosine `[Q]` of each image's nearest neighbour and its position `[Q]` among the others; never itself.

    With `components`, the images are the others: each pair of parts is multiplied once and serves both ways.
    """
    cosine = torch.full((len(asked.rows),), -torch.inf, device=device)
    nearest = torch.zeros(len(asked.rows), dtype=torch.int64, device=device)

    def keep(at: slice, values: Tensor, positions: Tensor) -> None:
        better = values > cosine[at]
        cosine[at] = torch.where(better, values, cosine[at])
        nearest[at] = torch.where(better, positions, nearest[at])

    pairs = [(a, b) for a in asked.parts() for b in others.parts() if components is None or b.start >= a.start]
    total = sum((a.stop - a.start) * (b.stop - b.start) for a, b in pairs)
    done, held, emb = 0, None, torch.empty(0)
    for a, b in pairs:
        if held != a:
            held, emb = a, asked.read(a, device)
        other_emb = emb if components and a == b else others.read(b, device)
        for i in _blocks(a):
            for j in _blocks(b):
                products = emb[i.start - a.start : i.stop - a.start] @ (
                    other_emb[j.start - b.start : j.stop - b.start].T
                )
                if within:
                    itself = np.equal.outer(asked.rows[i], others.rows[j])
                    products[torch.from_numpy(itself).to(device)] = -torch.inf
                best = products.max(1)
                keep(i, best.values, best.indices + j.start)
                if components:
                    _join(components, products >= threshold, i.start, j.start)
                    if a != b:
                        best = products.max(0)
                        keep(j, best.values, best.indices + i.start)
        done += (a.stop - a.start) * (b.stop - b.start)
        on_progress(done, total)
    return cosine.cpu().numpy(), nearest.cpu().numpy()


def _blocks(part: slice) -> Iterator[slice]:
    for start in range(part.start, part.stop, BLOCK_ROWS):
        yield slice(start, min(start + BLOCK_ROWS, part.stop))


def _join(components: Components, near: Tensor, row: int, column: int) -> None:
    """Join the pairs of a block, a million at most at once: among copies of one image every pair is near."""
    if near.any():
        for start in range(0, len(near), JOINED_ROWS):
            pairs = near[start : start + JOINED_ROWS].nonzero().cpu().numpy()
            components.join(pairs[:, 0] + row + start, pairs[:, 1] + column)


def share_interval(found: int, compared: int, *, exact: bool) -> tuple[float, float]:
    """The 95 % interval of a share that a sample estimates (Wilson 1927); the share itself if nothing was left out.

    >>> [round(end, 3) for end in share_interval(50, 1000, exact=False)]
    [0.038, 0.065]
    """
    share = found / compared
    if exact:
        return share, share
    z2 = 1.96**2
    middle = (share + z2 / (2 * compared)) / (1 + z2 / compared)
    half = math.sqrt(z2) / (1 + z2 / compared) * math.sqrt(share * (1 - share) / compared + z2 / (4 * compared**2))
    return max(0.0, middle - half), min(1.0, middle + half)
