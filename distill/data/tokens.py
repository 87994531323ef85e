"""Token ids of captions, ragged: tokenized once for a cache and a tokenizer, then mapped from disk.

M captions, T tokens.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cache.location import Location
from ...cache.processes import worker_pool
from ...cache.progress import OnProgress, Progress, ignore_progress
from ...cache.read.cache import Cache
from ...cache.read.caption_sets import CaptionOrigin, ChosenCaptions, with_captions
from ...cache.storage import token_arrays
from ...cache.storage.mmap import MmapRows
from ...encoders.packing import concatenated_ranges
from ...encoders.tokenizer import TextTokenizer
from ..cpu import num_usable_cores
from ..errors import DistillError

CAPTIONS_PER_BLOCK = 2**14  # to read fewer would still decode the whole 16 MB chunk that holds them
MANY_CAPTIONS = 300_000  # from here on processes make up for their start, which imports torch
BLOCKS_AHEAD = 2  # tokenized blocks that may wait for the disk
RaggedIds = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Ids of some captions joined, `[T]`, and the number of each caption's ids."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Ids of M captions, in memory or mapped: caption i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[Any] | MmapRows
    offsets: NDArray[np.int64] | MmapRows

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, captions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of ids of some captions."""
        lengths: NDArray[np.int64] = self.offsets.take(captions + 1) - self.offsets.take(captions)
        return lengths

    def gather(self, captions: NDArray[np.int64]) -> RaggedIds:
        """Ids of some captions joined, and their lengths.

        >>> table = TokenTable(np.array([1, 7, 2, 1, 2]), np.array([0, 3, 5]))
        >>> ids, lengths = table.gather(np.array([1, 0]))
        >>> ids.tolist(), lengths.tolist()
        ([1, 2, 1, 7, 2], [2, 3])
        """
        starts, lengths = self.offsets.take(captions), self.lengths(captions)
        return self.ids.take(concatenated_ranges(starts, lengths)).astype(np.int64), lengths

    def take(self, captions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Ids of some captions, one unpadded array each."""
        return _split(*self.gather(captions))


@dataclass(frozen=True, slots=True)
class JoinedTokens:
    """Ids of captions of several sets, each with a table of its own."""

    tables: Sequence[TokenTable]
    origin: CaptionOrigin

    def __len__(self) -> int:
        return len(self.origin)

    def lengths(self, captions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of ids of some captions."""
        lengths = np.empty(len(captions), np.int64)
        for part, at, places in self.origin.split(captions):
            lengths[at] = self.tables[part].lengths(places)
        return lengths

    def gather(self, captions: NDArray[np.int64]) -> RaggedIds:
        """Ids of some captions joined, and their lengths."""
        lengths = self.lengths(captions)
        starts, ids = np.cumsum(lengths) - lengths, np.empty(int(lengths.sum()), np.int64)
        for part, at, places in self.origin.split(captions):
            ids[concatenated_ranges(starts[at], lengths[at])] = self.tables[part].gather(places)[0]
        return ids, lengths

    def take(self, captions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Ids of some captions, one unpadded array each."""
        return _split(*self.gather(captions))


Tokens = TokenTable | JoinedTokens
"""Ids of M captions, of one set or of several."""


def _split(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [ids[a:b] for a, b in pairwise([0, *np.cumsum(lengths).tolist()])]


def open_tokens(
    cache: Cache,
    tokenizer: TextTokenizer,
    context_length: int,
    fallback: Path,
    *,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Tokens:
    """Ids of all captions of a cache; tokenized now if they are not stored yet.

    Args:
        cache: that holds the captions; the ids are stored in it, for each set of captions apart.
        tokenizer: that makes the ids.
        context_length: most ids of a caption.
        fallback: folder for the ids of this cache alone, if the cache cannot be written or is not a local folder.
        workers: processes that tokenize many captions; by default one a core.
        on_progress: called while captions are tokenized.

    Raises:
        CacheError: damaged captions or tokens, or no room to write.
        DistillError: a tokenizing process died.
    """
    if isinstance(cache, ChosenCaptions) and len(cache.parts) > 1:
        tables = [
            _open_table(part, tokenizer, context_length, fallback / part.caption_names[0], workers, on_progress)
            for part in cache.parts
        ]
        return JoinedTokens(tables, cache.origin())
    return _open_table(cache, tokenizer, context_length, fallback, workers, on_progress)


def _open_table(
    cache: Cache,
    tokenizer: TextTokenizer,
    context_length: int,
    fallback: Path,
    workers: int | None,
    on_progress: OnProgress,
) -> TokenTable:
    """Ids of the captions of one set."""
    key = tokenizer.fingerprint(context_length)
    in_cache = [cache.tokens_folder] if cache.tokens_folder else []
    group = next((folder / key for folder in (*in_cache, fallback) if (folder / key).exists()), None)
    is_stored = group is not None
    if group is None:
        group = next(filter(token_arrays.can_write, in_cache), fallback) / key
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        workers = workers or num_usable_cores()
        with closing(_tokenized(cache, tokenizer, context_length, workers, on_progress)) as blocks:
            token_arrays.write_tokens(group, dtype, blocks)
    tokens = token_arrays.map_tokens(group, cache.info.num_captions)
    if is_stored:  # perhaps by a stranger
        num_ids = 1 + max(tokenizer.backend.get_vocab(with_added_tokens=True).values())
        token_arrays.require_ids_below(tokens, num_ids, context_length, group)
    return TokenTable(tokens.ids, tokens.offsets)


def tokenize(tokenizer: TextTokenizer, captions: Sequence[str], context_length: int) -> TokenTable:
    """Ids of captions in memory, each at most `context_length` long."""
    ids, lengths = _encode(tokenizer, captions, context_length)
    return TokenTable(ids, np.concatenate([[0], np.cumsum(lengths)]))


def group_equal_captions(tokens: Tokens) -> NDArray[np.int64]:
    """Groups of captions with the same ids, `[M]`: for each caption the first equal one.

    Equal captions of different images are no negatives of one another. Captions are compared by two 64-bit multilinear
    hashes (Lemire and Kaser 2014, arXiv:1202.4961). Two different captions share both with a chance below 2^-88 (ids
    below 2^20), any two of 100 million with a chance below 2^-35.

    >>> table = TokenTable(np.array([1, 7, 2, 1, 8, 2, 1, 7, 2]), np.array([0, 3, 6, 9]))
    >>> group_equal_captions(table).tolist()
    [0, 1, 0]
    """
    hashes = np.empty((2, len(tokens)), np.uint64)
    for start in range(0, len(tokens), CAPTIONS_PER_BLOCK):
        block = slice(start, min(start + CAPTIONS_PER_BLOCK, len(tokens)))
        ids, lengths = tokens.gather(np.arange(block.start, block.stop))
        ends = np.cumsum(lengths)
        position = concatenated_ranges(0, lengths)
        for i in range(2):
            factors = np.random.Generator(np.random.Philox(i)).integers(0, 2**64, lengths.max(initial=0), np.uint64)
            # Sums that wrap around; + 1, so that a caption differs from a longer one that begins with it.
            sums = np.concatenate([[np.uint64(0)], np.cumsum((ids + 1).astype(np.uint64) * factors[position])])
            hashes[i, block] = sums[ends] - sums[ends - lengths]
    order = np.lexsort(hashes)  # stable, so equal captions stay in their order
    differs = np.zeros(len(tokens), bool)  # from the caption before, in that order
    differs[:1] = True
    for values in hashes:
        differs[1:] |= np.diff(values[order]) != 0
    starts = np.flatnonzero(differs)
    groups = np.empty(len(tokens), np.int64)
    groups[order] = np.repeat(order[starts], np.diff(starts, append=len(tokens)))
    return groups


def _encode(tokenizer: TextTokenizer, captions: Sequence[str], context_length: int) -> RaggedIds:
    encoded = tokenizer.encode(captions, context_length)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return np.fromiter(chain.from_iterable(encoded), np.int64, int(lengths.sum())), lengths


def _tokenized(
    cache: Cache,
    tokenizer: TextTokenizer,
    context_length: int,
    workers: int,
    on_progress: OnProgress,
) -> Generator[RaggedIds, None, None]:
    """Blocks of all captions, in order; memory does not grow with their number."""
    total = cache.info.num_captions
    ranges = [(start, min(start + CAPTIONS_PER_BLOCK, total)) for start in range(0, total, CAPTIONS_PER_BLOCK)]
    blocks: Iterator[RaggedIds]
    if workers == 1 or total < MANY_CAPTIONS:
        blocks = (_encode_range(cache, tokenizer, context_length, block) for block in ranges)
    else:
        blocks = _in_processes(cache, tokenizer, context_length, ranges, min(workers, len(ranges)))
    done = 0
    for ids, lengths in blocks:
        yield ids, lengths
        done += len(lengths)
        on_progress(Progress("tokenize", done, total))


def _encode_range(cache: Cache, tokenizer: TextTokenizer, context_length: int, block: tuple[int, int]) -> RaggedIds:
    return _encode(tokenizer, cache.captions(*block), context_length)


def _in_processes(
    cache: Cache, tokenizer: TextTokenizer, context_length: int, ranges: Sequence[tuple[int, int]], workers: int
) -> Iterator[RaggedIds]:
    pool = worker_pool(workers, __name__, _start_worker, cache.path, cache.caption_names, tokenizer, context_length)
    in_flight = deque[Future[RaggedIds]]()
    try:
        for block in ranges:
            in_flight.append(pool.submit(_encode_in_worker, block))
            if len(in_flight) == workers + BLOCKS_AHEAD:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
    except BrokenProcessPool as error:
        raise DistillError(
            f"{cache.path}: a tokenizing process died, perhaps for want of memory: run the same command again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Cache, TextTokenizer, int] | None = None


def _start_worker(cache: Location, captions: tuple[str, ...], tokenizer: TextTokenizer, context_length: int) -> None:
    global _worker
    _worker = with_captions(Cache(cache), captions), tokenizer, context_length


def _encode_in_worker(block: tuple[int, int]) -> RaggedIds:
    assert _worker is not None
    return _encode_range(*_worker, block)
