"""Writing of chunks, in a thread of its own so that the tower does not wait for the disk."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import zarr
from numpy.typing import NDArray

from ..format import EMB, HASH, NORM, STATUS
from ..read.cache import Cache
from .chunk_assembly import PendingChunk


def write_chunk(cache: Cache, chunk: PendingChunk) -> None:
    """Write the views of a chunk that were made.

    Status goes last, and norm after emb: a chunk, or a further view of one, counts as finished only when all of it is
    on disk.
    """
    # zarr leaves out chunks of zeros unless told otherwise, and does not keep that choice with the array.
    with zarr.config.set({"array.write_empty_chunks": True}):
        for i, view in enumerate(chunk.views):
            cache.arrays.reopen(EMB)[view, chunk.rows] = chunk.emb[i]
            cache.arrays.reopen(NORM)[view, chunk.rows] = chunk.norm[i]
        if 0 in chunk.views:
            if cache.arrays.has(HASH):
                cache.arrays.reopen(HASH)[chunk.rows] = chunk.hash
            cache.arrays.reopen(STATUS)[chunk.rows] = chunk.status


def write_plain_view(
    cache: Cache, rows: slice, emb: NDArray[np.float16], norm: NDArray[np.float32], status: NDArray[np.uint8]
) -> None:
    """Write one chunk of a cache with one view: `[R, D]`, `[R]` and `[R]`."""
    index, no_hashes = rows.start // cache.info.chunk_rows, np.zeros((len(status), 2), np.uint64)
    write_chunk(cache, PendingChunk(index, rows, (0,), emb[None], norm[None], status, no_hashes))


class ChunkWriter:
    """Writes chunks in order; one is written while the next is assembled.

    Attributes:
        write_s: seconds spent writing.
        wait_s: seconds the caller waited for it.
    """

    def __init__(self, cache: Cache, thread: ThreadPoolExecutor) -> None:
        """Write to a cache that is open for writing, in a pool of one thread."""
        self._cache, self._thread = cache, thread
        self._writing: Future[None] | None = None
        self.write_s = self.wait_s = 0.0

    def submit(self, chunk: PendingChunk) -> None:
        """Start to write a chunk as soon as the one before is on disk."""
        self.join()
        self._writing = self._thread.submit(self._write, chunk)

    def _write(self, chunk: PendingChunk) -> None:
        started = time.perf_counter()
        write_chunk(self._cache, chunk)
        self.write_s += time.perf_counter() - started

    def raise_early(self) -> None:
        """Raise the error of a write that failed, rather than after another chunk has been embedded."""
        if self._writing is not None and self._writing.done():
            self.join()

    def join(self) -> None:
        """Wait until the submitted chunk is on disk.

        Raises:
            CacheError: it could not be written.
        """
        if self._writing is not None:
            started = time.perf_counter()
            try:
                self._writing.result()
            finally:
                self.wait_s += time.perf_counter() - started
            self._writing = None


@contextmanager
def chunk_writer(cache: Cache) -> Iterator[ChunkWriter]:
    """A `ChunkWriter` whose chunks are on disk at the end of the block, also after an error or Ctrl-C."""
    with ThreadPoolExecutor(1, thread_name_prefix="chunk-writer") as thread:
        writer = ChunkWriter(cache, thread)
        yield writer
        writer.join()
