"""Captions as token ids, ragged: tokenized once for a cache and a tokenizer, and mapped from then on."""

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

from ...cache.format import TOKENS
from ...cache.location import Location
from ...cache.processes import worker_pool
from ...cache.progress import OnProgress, Progress, ignore_progress
from ...cache.read.cache import Cache
from ...cache.storage import token_arrays as stored
from ...cache.storage.mmap import MmapRows
from ...encoders.packing import concatenated_ranges
from ...encoders.tokenizer import TextTokenizer
from ..checks import num_usable_cores
from ..errors import DistillError

CAPTIONS_AT_A_TIME = 2**14  # reading a few would decode the whole 16 MB chunk that holds them
MANY_CAPTIONS = 300_000  # from here on processes make up for their start, which imports torch
BLOCKS_AHEAD = 2  # that may wait, tokenized, for the disk
Block = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Ids of a run of captions, one after the other, and the length of each."""


@dataclass(frozen=True, slots=True)
class TokenTable:
    """Ids of M captions, in memory or mapped: caption i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[Any] | MmapRows
    offsets: NDArray[np.int64] | MmapRows

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def gather(self, captions: NDArray[np.int64]) -> Block:
        """The ids of some captions, one after the other, and the length of each.

        >>> table = TokenTable(np.array([1, 7, 2, 1, 2]), np.array([0, 3, 5]))
        >>> ids, lengths = table.gather(np.array([1, 0]))
        >>> ids.tolist(), lengths.tolist()
        ([1, 2, 1, 7, 2], [2, 3])
        """
        starts = self.offsets.take(captions)
        lengths = self.offsets.take(captions + 1) - starts
        return self.ids.take(concatenated_ranges(starts, lengths)).astype(np.int64), lengths

    def take(self, captions: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The ids of some captions, apart and unpadded."""
        ids, lengths = self.gather(captions)
        return [ids[a:b] for a, b in pairwise([0, *np.cumsum(lengths).tolist()])]


def open_tokens(
    cache: Cache,
    tokenizer: TextTokenizer,
    context_length: int,
    beside: Path,
    *,
    workers: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> TokenTable:
    """The ids of all captions of a cache, tokenized now unless they were before.

    Args:
        cache: that holds the captions, and from now on their ids.
        tokenizer: whose ids.
        context_length: most ids of a caption.
        beside: folder for the ids of a cache that cannot be written, or is no local folder; of this cache alone.
        workers: processes that tokenize many captions; by default one a core.
        on_progress: called while captions are tokenized.

    Raises:
        CacheError: damaged captions or tokens, or no room to write.
        DistillError: a tokenizing process died.
    """
    key = tokenizer.fingerprint(context_length)
    inside = [cache.arrays.folder / TOKENS] if cache.arrays.is_folder else []
    group = next((place / key for place in (*inside, beside) if (place / key).exists()), None)
    if group is None:
        group = next(filter(stored.can_write, inside), beside) / key
        dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
        workers = workers or num_usable_cores()
        with closing(_tokenized(cache, tokenizer, context_length, workers, on_progress)) as blocks:
            stored.write_tokens(group, dtype, blocks)
    tokens = stored.map_tokens(group, cache.info.num_captions)
    return TokenTable(tokens.ids, tokens.offsets)


def tokenize(tokenizer: TextTokenizer, captions: Sequence[str], context_length: int) -> TokenTable:
    """Ids of captions in memory, each at most `context_length`."""
    ids, lengths = _encode(tokenizer, captions, context_length)
    return TokenTable(ids, np.concatenate([[0], np.cumsum(lengths)]))


def _encode(tokenizer: TextTokenizer, captions: Sequence[str], context_length: int) -> Block:
    encoded = tokenizer.encode(captions, context_length)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return np.fromiter(chain.from_iterable(encoded), np.int64, int(lengths.sum())), lengths


def _tokenized(
    cache: Cache,
    tokenizer: TextTokenizer,
    context_length: int,
    workers: int,
    on_progress: OnProgress,
) -> Generator[Block, None, None]:
    """Blocks of all captions, in order; memory does not grow with their number."""
    total = cache.info.num_captions
    runs = [(start, min(start + CAPTIONS_AT_A_TIME, total)) for start in range(0, total, CAPTIONS_AT_A_TIME)]
    blocks: Iterator[Block]
    if workers == 1 or total < MANY_CAPTIONS:
        blocks = (_encode_run(cache, tokenizer, context_length, run) for run in runs)
    else:
        blocks = _in_processes(cache, tokenizer, context_length, runs, min(workers, len(runs)))
    done = 0
    for ids, lengths in blocks:
        yield ids, lengths
        done += len(lengths)
        on_progress(Progress("tokenize", done, total))


def _encode_run(cache: Cache, tokenizer: TextTokenizer, context_length: int, run: tuple[int, int]) -> Block:
    return _encode(tokenizer, cache.captions(*run), context_length)


def _in_processes(
    cache: Cache, tokenizer: TextTokenizer, context_length: int, runs: Sequence[tuple[int, int]], workers: int
) -> Iterator[Block]:
    pool = worker_pool(workers, __name__, _start_worker, cache.path, tokenizer, context_length)
    in_flight = deque[Future[Block]]()
    try:
        for run in runs:
            in_flight.append(pool.submit(_encode_in_worker, run))
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


def _start_worker(cache: Location, tokenizer: TextTokenizer, context_length: int) -> None:
    global _worker
    _worker = Cache(cache), tokenizer, context_length


def _encode_in_worker(run: tuple[int, int]) -> Block:
    assert _worker is not None
    return _encode_run(*_worker, run)
