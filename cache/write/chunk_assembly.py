"""Between decoding and writing: the images of a chunk that are worth computing, in full batches, and what they gave.

Rejected images take no place in a batch, nor do those whose bytes the chunk has already: their rows copy the first
one's. So the batches of a chunk depend on its images alone, not on who decoded them or when. B images of a batch, R
rows of a chunk, v views of it that are made, D features.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import EMB, HASH, NORM, STATUS, Status
from ..read.cache import Cache
from .decode_pool import DecodedBlock, Views
from .encoder import ImageEncoder
from .image_decode import ResizeCrop
from .report import PassReport

Features = Callable[[], NDArray[np.float32]]


@dataclass(slots=True)
class PendingChunk:
    """A chunk of a pass. Few are in memory: one is gathered while others are computed and written.

    Attributes:
        index: along the images.
        rows: of the R images.
        views: the v views that are made.
        emb: `[v, R, D]`.
        norm: `[v, R]`; 0 in a further view that repeats the plain one.
        status: `[R]`; without the plain view among `views`, what the cache says.
        hash: `[R, 2]`, of each image's bytes; zeros where none were read.
        known_hash: without the plain view among `views`, what the cache says; None where it says nothing.
        num_kept: of its first rows, which were done before a source was appended.
        first: of the bytes seen, the row in this chunk that had them first.
        copies: (row, first row with the same bytes).
    """

    index: int
    rows: slice
    views: Views
    emb: NDArray[np.float16]
    norm: NDArray[np.float32]
    status: NDArray[np.uint8]
    hash: NDArray[np.uint64]
    known_hash: NDArray[np.uint64] | None = None
    num_kept: int = 0
    first: dict[bytes, int] = field(default_factory=dict)
    copies: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def begin(cls, cache: Cache, start: int, views: Views) -> "PendingChunk":
        """The chunk of which a pass begins at a row: its first, or that at which a source was appended."""
        index = start // cache.info.chunk_rows
        rows = cache.chunk_slice(index)
        num = rows.stop - rows.start
        chunk = cls(
            index=index,
            rows=rows,
            views=views,
            emb=np.zeros((len(views), num, cache.info.encoder.dim), np.float16),
            norm=np.zeros((len(views), num), np.float32),
            status=np.zeros(num, np.uint8) if 0 in views else cache.status(index),
            hash=np.zeros((num, 2), np.uint64),
            known_hash=cache.hashes(index) if 0 not in views and cache.has(HASH) else None,
            num_kept=start - rows.start,
        )
        if chunk.num_kept:
            chunk._keep_rows(cache)
        return chunk

    def _keep_rows(self, cache: Cache) -> None:
        kept, rows = slice(0, self.num_kept), slice(self.rows.start, self.rows.start + self.num_kept)
        for number, view in enumerate(self.views):
            self.emb[number, kept] = cache.rows_kept(EMB, rows, view)
            self.norm[number, kept] = cache.rows_kept(NORM, rows, view)
        if cache.has(HASH):
            self.hash[kept] = cache.rows_kept(HASH, rows)
        self.status[kept] = cache.rows_kept(STATUS, rows)

    def take(self, block: DecodedBlock) -> list[int]:
        """Note what became of a block's images.

        Returns:
            Those of the block that the tower has to see: decoded, still those of the plain view, and the first with
            their bytes.
        """
        offset = block.start - self.rows.start
        rows = slice(offset, offset + len(block.status))
        self.hash[rows] = block.hash
        if 0 in self.views:
            self.status[rows] = block.status
        usable = block.status == Status.EMBEDDED
        if self.known_hash is not None:  # a view of another image would be taught with this one's captions
            usable &= (block.hash == self.known_hash[rows]).all(axis=1)
        wanted = []
        for i in np.flatnonzero(usable).tolist():
            first = self.first.setdefault(block.hash[i].tobytes(), offset + i)
            if first == offset + i:
                wanted.append(i)
            else:
                self.copies.append((offset + i, first))
        return wanted

    def put(self, number: int, rows: NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Fill rows of one of the views with raw features `[len(rows), D]`."""
        norm = np.linalg.norm(features.astype(np.float64), axis=1)
        finite = (norm > 0) & (norm <= np.finfo(np.float32).max)  # False for NaN; the norm is stored as float32
        if self.views[number] == 0:
            self.status[rows[~finite]] = Status.NOT_FINITE
        self.emb[number, rows] = np.where(finite[:, None], features, 0) / np.where(finite, norm, 1)[:, None]
        self.norm[number, rows] = np.where(finite, norm, 0)

    def complete(self, cache: Cache) -> None:
        """Fill the rows that no batch had.

        The plain view says what becomes of an image; a further one that cannot be had repeats it.
        """
        if self.copies:
            rows, firsts = np.array(self.copies).T
            self.emb[:, rows], self.norm[:, rows] = self.emb[:, firsts], self.norm[:, firsts]
            if 0 in self.views:
                self.status[rows] = self.status[firsts]
        lost = self.status != Status.EMBEDDED
        self.emb[:, lost], self.norm[:, lost] = 0, 0
        for number, view in enumerate(self.views):
            repeats = np.flatnonzero(~lost & (self.norm[number] == 0)) if view else np.array([], np.int64)
            if len(repeats):
                plain = self.emb[0][repeats] if 0 in self.views else cache.emb_rows(self.rows.start + repeats)
                self.emb[number, repeats] = plain


@dataclass(slots=True)
class _Batch:
    """Images of a chunk on their way through the tower, all views of them.

    Attributes:
        chunk: that they are of.
        pixels: `[views, B, height, width, 3]`, as `ImageEncoder.staging` gave it.
        rows: in the chunk.
        features: of each view.
        is_last: of its chunk.
    """

    chunk: PendingChunk
    pixels: NDArray[np.uint8]
    rows: list[int] = field(default_factory=list)
    features: list[Features] = field(default_factory=list)
    is_last: bool = False


class ChunkAssembler:
    """Gathers images into batches of one shape and hands chunks on when all their features are there."""

    def __init__(
        self,
        cache: Cache,
        tower: ImageEncoder,
        num_views: int,
        report: PassReport,
        on_chunk: Callable[[PendingChunk], None],
    ) -> None:
        """Take memory for the batches.

        Args:
            cache: open for writing.
            tower: that sees them.
            num_views: most views of a chunk.
            report: what the tower and the images took is added to it.
            on_chunk: called with each chunk, complete, in order.
        """
        geometry = ResizeCrop.from_preprocess(cache.info.encoder.preprocess)
        shape = (num_views, cache.info.batch_size, geometry.height, geometry.width, 3)
        self._cache, self._tower, self._report, self._on_chunk = cache, tower, report, on_chunk
        self._free = [tower.staging(shape) for _ in range(tower.in_flight + 1)]
        self._in_flight: deque[_Batch] = deque()
        self._gathered: _Batch | None = None
        self._chunk: PendingChunk | None = None

    def add(self, block: DecodedBlock) -> None:
        """Take in the next block of rows; its pixels are copied."""
        if self._chunk is None:
            self._chunk = PendingChunk.begin(self._cache, block.start, block.views)
        chunk, offset = self._chunk, block.start - self._chunk.rows.start
        wanted = chunk.take(block)
        while wanted:
            batch = self._gathered = self._gathered or _Batch(chunk, self._free.pop())
            begun = len(batch.rows)
            taken = wanted[: self._cache.info.batch_size - begun]
            for i, pixels in enumerate(block.pixels):
                np.take(pixels, taken, axis=0, out=batch.pixels[i, begun : begun + len(taken)], mode="clip")
            batch.rows += [offset + i for i in taken]
            wanted = wanted[len(taken) :]
            if len(batch.rows) == self._cache.info.batch_size:
                self._submit(batch)
        self._report.num_pictures += len(block.status)
        if block.start + len(block.status) == chunk.rows.stop:
            batch = self._gathered or _Batch(chunk, self._free.pop())
            batch.is_last = True
            self._submit(batch)
            self._chunk = None

    def finish(self) -> None:
        """Wait for everything that is on its way."""
        while self._in_flight:
            self._land()

    def _submit(self, batch: _Batch) -> None:
        """Zeros fill the batch up, so that its shape is fixed."""
        self._gathered = None
        if batch.rows:
            started = time.perf_counter()
            for pixels in batch.pixels[: len(batch.chunk.views)]:
                pixels[len(batch.rows) :] = 0
                batch.features.append(self._tower.submit(pixels, len(batch.rows)))
            self._report.tower_s += time.perf_counter() - started
        self._in_flight.append(batch)
        while len(self._in_flight) > self._tower.in_flight:
            self._land()

    def _land(self) -> None:
        """Wait for the oldest batch; hand its chunk on if that was the last."""
        batch = self._in_flight.popleft()
        chunk, dim, report = batch.chunk, self._cache.info.encoder.dim, self._report
        rows = np.array(batch.rows, np.int64)
        for number, features in enumerate(batch.features):
            started = time.perf_counter()
            found = features()
            report.tower_s += time.perf_counter() - started
            if found.shape != (len(rows), dim):
                raise CacheError(
                    f"the tower gave features of shape {found.shape}, the cache was planned for ({len(rows)}, {dim}): "
                    "use the tower that planned it"
                )
            chunk.put(number, rows, found)
        report.transfer_s, report.forward_s = self._tower.transfer_s, self._tower.forward_s
        self._free.append(batch.pixels)
        if batch.is_last:
            chunk.complete(self._cache)
            report.num_embedded += int(np.count_nonzero(chunk.status[chunk.num_kept :] == Status.EMBEDDED))
            report.num_copied += len(chunk.copies)
            self._on_chunk(chunk)
