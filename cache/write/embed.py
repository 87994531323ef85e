"""The pass: every missing chunk is decoded, embedded and written whole; when none is missing, the cache is sealed.

The batches of a chunk depend on its images alone, so a resumed pass writes the same bytes as an undisturbed one.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import EMB, HASH, NORM, STATUS
from ..read.cache import Cache
from ..read.repair import REMAKE
from .chunk_assembly import ChunkAssembler, PendingChunk
from .decode_pool import Block, BlockDecoder, BlockReader, DecodedBlock, Views, block_decoder
from .encoder import Encode, ImageEncoder, PlainImageEncoder
from .image_decode import ResizeCrop
from .report import PassReport
from .seal import seal
from .views import missing_views
from .work_sharing import ALONE, Worker, WorkerLease, sharing


def embed_missing(
    cache: Cache,
    encode: Encode | ImageEncoder,
    *,
    reader: BlockReader,
    workers: int,
    num_views: int = 1,
    worker: Worker = ALONE,
    on_progress: Callable[[int, PassReport], None] = lambda done, report: None,
) -> PassReport:
    """Embed the chunks that are missing, then seal the cache; several workers share them.

    An image is decoded once for all views of it that are missing. Each view runs through the tower in batches of its
    own, of the same rows, so that the plain one gets the bytes that it gets alone.

    A script that calls this needs `if __name__ == "__main__":` around its own work, because the decoding processes
    import the main module.

    Args:
        cache: a planned cache, open for writing.
        encode: the frozen tower, or a function that computes at once.
        reader: of the images, see `sources.reader_of`.
        workers: decoding processes.
        num_views: views that the cache shall have; never fewer than it has. There is room for them.
        worker: which of those that share the pass this is.
        on_progress: called with the images taken in by this pass: after each block of them, and about every second
            while it waits for other workers.

    Raises:
        CacheError: the tower's output has another width than planned, decoding processes die one after another, no room
            to write, or the cache does not say how its views are made.
    """
    report, started = PassReport(), time.perf_counter()
    num_views = max(num_views, cache.info.num_views)
    if num_views > 1 and cache.info.augmentation is None:
        raise CacheError(f"{cache.path} has no record of how its views are made (zarr.json, augmentation): {REMAKE}")
    missing = missing_views(cache, num_views)
    if missing:
        geometry, most_views = (
            ResizeCrop.from_preprocess(cache.info.encoder.preprocess),
            max(map(len, missing.values())),
        )
        tower = PlainImageEncoder(encode) if callable(encode) else encode
        with (
            block_decoder(
                reader,
                geometry,
                block_rows=cache.info.batch_size,
                workers=workers,
                max_pixels=cache.info.max_pixels,
                decoding=cache.info.decoding,
                num_views=most_views,
                augmentation=cache.info.augmentation,
            ) as decoder,
            sharing(cache.store, worker, "embed") as share,
            _chunk_writer(cache, report, share.wrote) as writer,
        ):
            batches = ChunkAssembler(cache, tower, most_views, report, writer.submit)

            def wait_for_others(waited_s: float) -> None:
                report.others_s += waited_s
                report.wall_s = time.perf_counter() - started
                on_progress(report.num_pictures, report)

            waited_from, others_s = time.perf_counter(), 0.0
            for block in _shared_blocks(cache, decoder, batches, writer, share, num_views, wait_for_others):
                report.wait_s += time.perf_counter() - waited_from - (report.others_s - others_s)
                report.read_s += block.read_s
                report.decode_s += block.decode_s
                report.num_died = decoder.num_died
                batches.add(block)
                writer.raise_early()
                report.wall_s = time.perf_counter() - started
                share.note(report.num_pictures, report.wall_s, report.bottleneck)
                on_progress(report.num_pictures, report)
                waited_from, others_s = time.perf_counter(), report.others_s
    seal(cache, num_views, worker, changed=bool(missing))
    report.wall_s = time.perf_counter() - started
    return report


def _shared_blocks(
    cache: Cache,
    decoder: BlockDecoder,
    batches: ChunkAssembler,
    writer: "_ChunkWriter",
    share: WorkerLease,
    num_views: int,
    on_wait: Callable[[float], None],
) -> Iterator[DecodedBlock]:
    """The blocks of this worker's chunks, decoded, until no chunk is missing."""
    while share.has_more(lambda: missing_views(cache, num_views), on_wait):
        yield from decoder.decode(_blocks(cache, share.chunks(lambda: missing_views(cache, num_views))))
        batches.finish()
        writer.join()


def _blocks(cache: Cache, chunks: Iterable[tuple[int, Views]]) -> Iterator[Block]:
    """Every batch of the given chunks; only one chunk's keys are held."""
    for chunk, views in chunks:
        rows = cache.chunk_slice(chunk)
        if 0 in views:  # what is before that row is kept, also if another worker has just finished the chunk
            rows = slice(cache.appended_row(chunk) or rows.start, rows.stop)
        keys, locators = cache.keys(rows.start, rows.stop), cache.locators(rows.start, rows.stop)
        for offset in range(0, len(keys), cache.info.batch_size):
            batch = slice(offset, offset + cache.info.batch_size)
            yield Block(rows.start + offset, keys[batch], None if locators is None else locators[batch], views)


class _ChunkWriter:
    """Writes chunks in order in a thread of its own, so that the tower does not wait for the disk."""

    def __init__(
        self, cache: Cache, report: PassReport, on_written: Callable[[int], None], thread: ThreadPoolExecutor
    ) -> None:
        self._cache, self._report, self._on_written, self._thread = cache, report, on_written, thread
        self._writing: Future[None] | None = None

    def submit(self, chunk: PendingChunk) -> None:
        """Start to write a chunk when the one before is on disk."""
        self.join()
        self._writing = self._thread.submit(self._write, chunk)

    def _write(self, chunk: PendingChunk) -> None:
        _write(self._cache, chunk, self._report)
        self._on_written(chunk.index)

    def raise_early(self) -> None:
        """Raise the error of a write that failed, rather than after another chunk has been embedded."""
        if self._writing is not None and self._writing.done():
            self.join()

    def join(self) -> None:
        """Wait until what was submitted is on disk; raises what the write raised."""
        if self._writing is not None:
            waited_from = time.perf_counter()
            try:
                self._writing.result()
            finally:
                self._report.write_wait_s += time.perf_counter() - waited_from
            self._writing = None


@contextmanager
def _chunk_writer(cache: Cache, report: PassReport, on_written: Callable[[int], None]) -> Iterator[_ChunkWriter]:
    """A `_ChunkWriter` whose chunks are on disk at the end of the block, also when that is an error or Ctrl-C."""
    with ThreadPoolExecutor(1, thread_name_prefix="chunk-writer") as thread:
        writer = _ChunkWriter(cache, report, on_written, thread)
        yield writer
        writer.join()


def write_chunk(
    cache: Cache, rows: slice, emb: NDArray[np.float16], norm: NDArray[np.float32], status: NDArray[np.uint8]
) -> None:
    """Write the plain view of one chunk: `[1, R, D]`, `[1, R]` and `[R]`; status goes last."""
    index, hash_ = rows.start // cache.info.chunk_rows, np.zeros((len(status), 2), np.uint64)
    _write(cache, PendingChunk(index, rows, (0,), emb, norm, status, hash_), PassReport())


def _write(cache: Cache, chunk: PendingChunk, report: PassReport) -> None:
    """Status goes last, and norm after emb: a chunk, or a further view of one, is done only when it is on disk."""
    write_from = time.perf_counter()
    # zarr leaves out chunks of zeros unless told otherwise, and does not keep that choice with the array.
    with zarr.config.set({"array.write_empty_chunks": True}):
        for i, view in enumerate(chunk.views):
            cache.array_now(EMB)[view, chunk.rows] = chunk.emb[i]
            cache.array_now(NORM)[view, chunk.rows] = chunk.norm[i]
        if 0 in chunk.views:
            if cache.has(HASH):
                cache.array_now(HASH)[chunk.rows] = chunk.hash
            cache.array_now(STATUS)[chunk.rows] = chunk.status
    report.write_s += time.perf_counter() - write_from
