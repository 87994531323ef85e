"""The pass: every missing chunk is decoded, embedded and written whole; when none is missing, the cache is sealed.

The batches of a chunk depend on its rows alone, so a resumed pass writes the same bytes as an undisturbed one.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from .decoding import DecodedBlock, block_decoder
from .errors import CacheError
from .files import sweep_partial
from .format import ATTRIBUTE, EMB, NORM, STATUS, CacheInfo, Status
from .pictures import Geometry
from .ragged import open_array
from .store import Cache

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Pixels `[B, height, width, 3] uint8` to raw features `[B, D] float32`."""


@dataclass(kw_only=True)
class PassReport:
    """What a pass did and where its time went.

    Attributes:
        num_pictures: pictures that this pass tried.
        num_embedded: of these, the embedded ones.
        wall_s: seconds from start to end.
        decode_s: seconds spent decoding, summed over the workers.
        wait_s: seconds the pass waited for decoded pictures.
        tower_s: seconds in the tower.
        write_s: seconds spent writing, in a thread beside the tower.
        write_wait_s: seconds the pass waited for that thread.
    """

    num_pictures: int = 0
    num_embedded: int = 0
    wall_s: float = 0.0
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
    """A chunk of a pass. Two are in memory: one is filled while the one before is written."""

    index: int
    rows: slice
    emb: NDArray[np.float16]
    norm: NDArray[np.float32]
    status: NDArray[np.uint8]


def embed_missing(
    cache: Cache,
    encode: Encode,
    *,
    image_root: Path,
    workers: int,
    on_progress: Callable[[int, PassReport], None] = lambda done, report: None,
) -> PassReport:
    """Embed the chunks that are missing, then seal the cache.

    A script that calls this needs `if __name__ == "__main__":` around its own work, because the decoding processes
    import the main module.

    Args:
        cache: a planned cache, open for writing.
        encode: the frozen tower.
        image_root: keys are relative to it; nothing outside is read.
        workers: decoding processes.
        on_progress: called after each batch with the pictures done in this pass.

    Raises:
        CacheError: the tower's output has another width than planned, a decoding process died, or no room to write.
    """
    report, started = PassReport(), time.perf_counter()
    missing = cache.missing_chunks()
    if missing:
        geometry = Geometry.from_preprocess(cache.info.encoder.preprocess)
        with (
            block_decoder(
                image_root,
                geometry,
                block_rows=cache.info.batch_size,
                workers=workers,
                max_pixels=cache.info.max_pixels,
            ) as decoder,
            _chunk_writer(cache, report) as writer,
        ):
            chunk: _Chunk | None = None
            waited_from = time.perf_counter()
            for block in decoder.decode(_blocks(cache, missing)):
                report.wait_s += time.perf_counter() - waited_from
                if chunk is None:
                    chunk = _begin(cache, block.start)
                _embed_block(block, chunk, encode, report)
                if block.start + len(block.status) == chunk.rows.stop:
                    writer.submit(chunk)
                    chunk = None
                writer.raise_early()
                report.wall_s = time.perf_counter() - started
                on_progress(report.num_pictures, report)
                waited_from = time.perf_counter()
    if missing or cache.info.state != "sealed":
        seal(cache)
    report.wall_s = time.perf_counter() - started
    return report


def seal(cache: Cache) -> None:
    """Count what became of the pictures and mark the cache complete.

    Raises:
        CacheError: not one picture could be embedded; all of them are tried again by the next pass.
    """
    assert not cache.missing_chunks()
    sweep_partial(cache.folder)
    counts = {status.label: count for status, count in cache.count_status().items()}
    if Status.EMBEDDED.label not in counts:
        shutil.rmtree(cache.folder / STATUS / "c")
        found = ", ".join(f"{count:,} {reason}" for reason, count in counts.items())
        raise CacheError(
            f"{cache.path}: not one picture could be embedded ({found}): check --image-root and run the command again"
        )
    write_info(cache, replace(cache.info, state="sealed", counts=counts))


def write_info(cache: Cache, info: CacheInfo) -> None:
    """Replace the metadata of a cache that is open for writing."""
    cache.info = info
    cache.root.attrs[ATTRIBUTE] = info.to_attributes()


def _blocks(cache: Cache, chunks: list[int]) -> Iterator[tuple[int, list[str]]]:
    """(first row, keys) of every batch of the given chunks; only one chunk's keys are held."""
    for chunk in chunks:
        rows = cache.chunk_slice(chunk)
        keys = cache.keys(rows.start, rows.stop)
        for offset in range(0, len(keys), cache.info.batch_size):
            yield rows.start + offset, keys[offset : offset + cache.info.batch_size]


def _begin(cache: Cache, start: int) -> _Chunk:
    index = start // cache.info.chunk_rows
    rows = cache.chunk_slice(index)
    num = rows.stop - rows.start
    emb = np.zeros((num, cache.info.encoder.dim), np.float16)
    return _Chunk(index, rows, emb, np.zeros(num, np.float32), np.zeros(num, np.uint8))


def _embed_block(block: DecodedBlock, chunk: _Chunk, encode: Encode, report: PassReport) -> None:
    """Run the tower on one batch. Rejected pictures go through as zeros, so that the batch's shape is fixed."""
    tower_from = time.perf_counter()
    features = encode(block.pixels)  # [B, D]
    report.tower_s += time.perf_counter() - tower_from
    report.decode_s += block.decode_s
    if features.shape != (len(block.status), chunk.emb.shape[1]):
        raise CacheError(
            f"the tower gave features of shape {features.shape}, the cache was planned for "
            f"({len(block.status)}, {chunk.emb.shape[1]}): use the tower that planned it"
        )
    norm = np.linalg.norm(features.astype(np.float64), axis=1)
    finite = (norm > 0) & (norm <= np.finfo(np.float32).max)  # False for NaN; the norm is stored as float32
    status = np.where((block.status == Status.EMBEDDED) & ~finite, np.uint8(Status.NOT_FINITE), block.status)
    good = status == Status.EMBEDDED
    rows = slice(block.start - chunk.rows.start, block.start - chunk.rows.start + len(status))
    unit = np.where(good[:, None], features, 0) / np.where(good, norm, 1)[:, None]
    chunk.emb[rows], chunk.norm[rows], chunk.status[rows] = unit, np.where(good, norm, 0), status
    report.num_pictures += len(status)
    report.num_embedded += int(good.sum())


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


def _write(cache: Cache, chunk: _Chunk, report: PassReport) -> None:
    """Status goes last: a chunk counts as done only when its embeddings are on disk."""
    write_from = time.perf_counter()
    # zarr leaves out chunks of zeros unless told otherwise, and does not keep that choice with the array.
    with zarr.config.set({"array.write_empty_chunks": True}):
        open_array(cache.root, EMB)[0, chunk.rows] = chunk.emb
        open_array(cache.root, NORM)[0, chunk.rows] = chunk.norm
        open_array(cache.root, STATUS)[chunk.rows] = chunk.status
    report.write_s += time.perf_counter() - write_from
