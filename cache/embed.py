"""The pass: every missing chunk is decoded, embedded and written whole; when none is missing, the cache is sealed.

The batches of a chunk depend on its rows alone, so a resumed pass writes the same bytes as an undisturbed one.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import zarr
from numpy.typing import NDArray

from .checked import REMAKE
from .decoding import Block, BlockReader, DecodedBlock, Views, block_decoder
from .errors import CacheError
from .files import sweep_partial
from .format import ATTRIBUTE, EMB, NORM, STATUS, TOKENS, CacheInfo, Status
from .pictures import Geometry
from .ragged import open_array
from .store import Cache
from .views import Missing, keep_rows_before, missing_views

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels `[B, height, width, 3] uint8` to raw features `[B, D] float32`."""


@dataclass(kw_only=True)
class PassReport:
    """What a pass did and where its time went.

    Attributes:
        num_pictures: pictures that this pass tried.
        num_embedded: of these, the embedded ones.
        wall_s: seconds from start to end.
        read_s: seconds spent reading pictures, summed over the workers.
        decode_s: seconds spent decoding, summed over the workers.
        wait_s: seconds the pass waited for decoded pictures.
        tower_s: seconds in the tower.
        write_s: seconds spent writing, in a thread beside the tower.
        write_wait_s: seconds the pass waited for that thread.
    """

    num_pictures: int = 0
    num_embedded: int = 0
    wall_s: float = 0.0
    read_s: float = 0.0
    decode_s: float = 0.0
    wait_s: float = 0.0
    tower_s: float = 0.0
    write_s: float = 0.0
    write_wait_s: float = 0.0

    @property
    def bottleneck(self) -> str:
        """The stage that the others waited for.

        >>> PassReport(wait_s=1, tower_s=5, write_s=9, write_wait_s=2).bottleneck
        'the tower'
        """
        stages = {"the tower": self.tower_s, "decoding": self.wait_s, "writing": self.write_wait_s}
        return max(stages, key=stages.__getitem__)


@dataclass(slots=True)
class _Chunk:
    """A chunk of a pass. Two are in memory: one is filled while the one before is written.

    Attributes:
        index: along the pictures.
        rows: of the R pictures.
        views: the v views that are made.
        emb: `[v, R, D]`.
        norm: `[v, R]`; 0 in a further view that repeats the plain one.
        status: `[R]`; without the plain view among `views`, what the cache says.
    """

    index: int
    rows: slice
    views: Views
    emb: NDArray[np.float16]
    norm: NDArray[np.float32]
    status: NDArray[np.uint8]


def embed_missing(
    cache: Cache,
    encode: Encode,
    *,
    reader: BlockReader,
    workers: int,
    num_views: int = 1,
    on_progress: Callable[[int, PassReport], None] = lambda done, report: None,
) -> PassReport:
    """Embed the chunks that are missing, then seal the cache.

    A picture is decoded once for all views of it that are missing. Each view runs through the tower in batches of its
    own, so that the plain one gets the bytes that it gets alone.

    A script that calls this needs `if __name__ == "__main__":` around its own work, because the decoding processes
    import the main module.

    Args:
        cache: a planned cache, open for writing.
        encode: the frozen tower.
        reader: of the pictures, see `sources.reader_of`.
        workers: decoding processes.
        num_views: views that the cache shall have; never fewer than it has. There is room for them.
        on_progress: called after each batch with the pictures done in this pass.

    Raises:
        CacheError: the tower's output has another width than planned, a decoding process died, no room to write, or the
            cache does not say how its views are made.
    """
    report, started = PassReport(), time.perf_counter()
    num_views = max(num_views, cache.info.num_views)
    if num_views > 1 and cache.info.augmentation is None:
        raise CacheError(f"{cache.path} has no record of how its views are made (zarr.json, augmentation): {REMAKE}")
    missing = missing_views(cache, num_views)
    if missing:
        geometry = Geometry.from_preprocess(cache.info.encoder.preprocess)
        with (
            block_decoder(
                reader,
                geometry,
                block_rows=cache.info.batch_size,
                workers=workers,
                max_pixels=cache.info.max_pixels,
                num_views=max(map(len, missing.values())),
                augmentation=cache.info.augmentation,
            ) as decoder,
            _chunk_writer(cache, report) as writer,
        ):
            chunk: _Chunk | None = None
            waited_from = time.perf_counter()
            for block in decoder.decode(_blocks(cache, missing)):
                report.wait_s += time.perf_counter() - waited_from
                if chunk is None:
                    chunk = _begin(cache, block.start, block.views)
                _embed_block(cache, block, chunk, encode, report)
                if block.start + len(block.status) == chunk.rows.stop:
                    writer.submit(chunk)
                    chunk = None
                writer.raise_early()
                report.wall_s = time.perf_counter() - started
                on_progress(report.num_pictures, report)
                waited_from = time.perf_counter()
    if missing or cache.info.state != "sealed" or num_views > cache.info.num_views:
        seal(cache, num_views)
    report.wall_s = time.perf_counter() - started
    return report


def seal(cache: Cache, num_views: int = 1) -> None:
    """Count what became of the pictures and mark the cache complete, with so many views or those it has.

    Raises:
        CacheError: not one picture could be embedded, or not one for a further view; the next pass tries again.
    """
    num_views = max(num_views, cache.info.num_views)
    assert not missing_views(cache, num_views)
    sweep_partial(cache.folder, keep=TOKENS)  # while views are added, runs may be writing there
    counts = {status.label: count for status, count in cache.count_status().items()}
    if Status.EMBEDDED.label not in counts:
        shutil.rmtree(cache.folder / STATUS / "c")
        found = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        root = "--image-root (links that lead out of it are not followed)"
        raise CacheError(f"{cache.path}: not one picture could be embedded ({found}): check {root} and run it again")
    norm = cache.array(NORM)
    empty = [view for view in range(cache.info.num_views, num_views) if not np.any(norm[view])]
    for view in empty:
        shutil.rmtree(cache.folder / NORM / "c" / str(view))
    if empty:
        raise CacheError(
            f"{cache.path}: not one picture could be read again: check --image-root and run the command again"
        )
    write_info(cache, replace(cache.info, state="sealed", counts=counts, num_views=num_views))


def write_info(cache: Cache, info: CacheInfo) -> None:
    """Replace the metadata of a cache that is open for writing."""
    cache.info = info
    cache.root.attrs[ATTRIBUTE] = info.to_attributes()


def _blocks(cache: Cache, missing: Missing) -> Iterator[Block]:
    """Every batch of the given chunks; only one chunk's keys are held."""
    for chunk, views in missing.items():
        start, stop = cache.first_pending(chunk) or cache.chunk_slice(chunk).start, cache.chunk_slice(chunk).stop
        keys, locators = cache.keys(start, stop), cache.locators(start, stop)
        for offset in range(0, len(keys), cache.info.batch_size):
            batch = slice(offset, offset + cache.info.batch_size)
            yield Block(start + offset, keys[batch], None if locators is None else locators[batch], views)


def _begin(cache: Cache, start: int, views: Views) -> _Chunk:
    index = start // cache.info.chunk_rows
    num = len(range(len(cache))[cache.chunk_slice(index)])
    status = np.zeros(num, np.uint8) if 0 in views else cache.status(index)
    emb, norm = np.zeros((len(views), num, cache.info.encoder.dim), np.float16), np.zeros((len(views), num), np.float32)
    keep_rows_before(cache, start, views, emb, norm, status)
    return _Chunk(index, cache.chunk_slice(index), views, emb, norm, status)


def _embed_block(cache: Cache, block: DecodedBlock, chunk: _Chunk, encode: Encode, report: PassReport) -> None:
    """Run the tower on one batch of each view.

    Rejected pictures go through as zeros, so that the batch's shape is fixed. The plain view says what becomes of a
    picture; a further one that cannot be had repeats it.
    """
    rows = slice(block.start - chunk.rows.start, block.start - chunk.rows.start + len(block.status))
    status = chunk.status[rows]
    if 0 in chunk.views:
        status[:] = block.status
    report.read_s += block.read_s
    report.decode_s += block.decode_s
    for i, view in enumerate(chunk.views):
        tower_from = time.perf_counter()
        features = encode(block.pixels[i])  # [B, D]
        report.tower_s += time.perf_counter() - tower_from
        if features.shape != (len(status), chunk.emb.shape[-1]):
            raise CacheError(
                f"the tower gave features of shape {features.shape}, the cache was planned for "
                f"({len(status)}, {chunk.emb.shape[-1]}): use the tower that planned it"
            )
        norm = np.linalg.norm(features.astype(np.float64), axis=1)
        finite = (norm > 0) & (norm <= np.finfo(np.float32).max)  # False for NaN; the norm is stored as float32
        if view == 0:
            status[(status == Status.EMBEDDED) & ~finite] = Status.NOT_FINITE
        good = finite & (block.status == Status.EMBEDDED) & (status == Status.EMBEDDED)
        chunk.emb[i, rows] = np.where(good[:, None], features, 0) / np.where(good, norm, 1)[:, None]
        chunk.norm[i, rows] = np.where(good, norm, 0)
        repeats = np.flatnonzero((status == Status.EMBEDDED) & ~good)
        if len(repeats):
            plain = chunk.emb[0, rows][repeats] if 0 in chunk.views else cache.emb_rows(block.start + repeats)
            chunk.emb[i, rows.start + repeats] = plain
    report.num_pictures += len(status)
    report.num_embedded += int(np.count_nonzero(status == Status.EMBEDDED))


class _ChunkWriter:
    """Writes chunks in order in a thread of its own, so that the tower does not wait for the disk."""

    def __init__(self, cache: Cache, report: PassReport, thread: ThreadPoolExecutor) -> None:
        self._cache, self._report, self._thread = cache, report, thread
        self._writing: Future[None] | None = None

    def submit(self, chunk: _Chunk) -> None:
        """Start to write a chunk when the one before is on disk."""
        self.join()
        self._writing = self._thread.submit(_write, self._cache, chunk, self._report)

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
def _chunk_writer(cache: Cache, report: PassReport) -> Iterator[_ChunkWriter]:
    """A `_ChunkWriter` whose chunks are on disk at the end of the block, also when that is an error or Ctrl-C."""
    with ThreadPoolExecutor(1, thread_name_prefix="chunk-writer") as thread:
        writer = _ChunkWriter(cache, report, thread)
        yield writer
        writer.join()


def write_chunk(
    cache: Cache, rows: slice, emb: NDArray[np.float16], norm: NDArray[np.float32], status: NDArray[np.uint8]
) -> None:
    """Write the plain view of one chunk: `[1, R, D]`, `[1, R]` and `[R]`; status goes last."""
    index = rows.start // cache.info.chunk_rows
    _write(cache, _Chunk(index, rows, (0,), emb, norm, status), PassReport())


def _write(cache: Cache, chunk: _Chunk, report: PassReport) -> None:
    """Status goes last, and norm after emb: a chunk, or a further view of one, is done only when it is on disk."""
    write_from = time.perf_counter()
    # zarr leaves out chunks of zeros unless told otherwise, and does not keep that choice with the array.
    with zarr.config.set({"array.write_empty_chunks": True}):
        for i, view in enumerate(chunk.views):
            open_array(cache.root, EMB)[view, chunk.rows] = chunk.emb[i]
            open_array(cache.root, NORM)[view, chunk.rows] = chunk.norm[i]
        if 0 in chunk.views:
            open_array(cache.root, STATUS)[chunk.rows] = chunk.status
    report.write_s += time.perf_counter() - write_from
