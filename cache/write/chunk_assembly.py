"""Assembly of chunks: decoded images are gathered into full batches, their features into the rows of their chunk.

Rejected images take no place in a batch, and neither do images whose bytes their chunk has already: their rows copy
those of the first one. So the batches of a chunk depend on its images alone, not on who decoded them or when. B images
of a batch, R rows of a chunk, v views of it that are made, D features.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import EMB, HASH, NORM, STATUS, Status
from ..read.cache import Cache
from .decode_pool import DecodedBlock, ViewNumbers
from .encoder import ImageEncoder
from .image_decode import ResizeCrop

PendingFeatures = Callable[[], NDArray[np.float32]]
"""Waits for the features `[num, D]` of a batch."""


@dataclass(slots=True)
class PendingChunk:
    """A chunk that is being filled. Few are in memory: one is gathered while others are computed and written.

    Attributes:
        index: of the chunk, along the images.
        rows: of the R images.
        views: the v views that are made.
        emb: `[v, R, D]`.
        norm: `[v, R]`; 0 in a further view that repeats the plain one.
        status: `[R]`; without the plain view among `views`, as the cache has it.
        hash: `[R, 2]`, of each image's bytes; zeros where none were read.
        known_hash: without the plain view among `views`, the hashes of the cache; None where it has none.
        num_kept: its first rows that were finished before a source was appended.
        first: for the bytes seen so far, the first row of this chunk that has them.
        copies: (row, first row with the same bytes).
    """

    index: int
    rows: slice
    views: ViewNumbers
    emb: NDArray[np.float16]
    norm: NDArray[np.float32]
    status: NDArray[np.uint8]
    hash: NDArray[np.uint64]
    known_hash: NDArray[np.uint64] | None = None
    num_kept: int = 0
    first: dict[bytes, int] = field(default_factory=dict)
    copies: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def begin(cls, cache: Cache, start: int, views: ViewNumbers) -> "PendingChunk":
        """Begin the chunk of a row: its first row, or the one at which a source was appended."""
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
            known_hash=cache.hashes(index) if 0 not in views and cache.arrays.has(HASH) else None,
            num_kept=start - rows.start,
        )
        if chunk.num_kept:
            chunk._keep_rows(cache)
        return chunk

    @property
    def num_embedded(self) -> int:
        """Rows embedded by this pass, once the chunk is complete."""
        return int(np.count_nonzero(self.status[self.num_kept :] == Status.EMBEDDED))

    def _keep_rows(self, cache: Cache) -> None:
        kept, rows = slice(0, self.num_kept), slice(self.rows.start, self.rows.start + self.num_kept)
        for number, view in enumerate(self.views):
            self.emb[number, kept] = cache.written_rows(EMB, rows, view)
            self.norm[number, kept] = cache.written_rows(NORM, rows, view)
        if cache.arrays.has(HASH):
            self.hash[kept] = cache.written_rows(HASH, rows)
        self.status[kept] = cache.written_rows(STATUS, rows)

    def take(self, block: DecodedBlock) -> list[int]:
        """Keep the status and hash of a block's images.

        Returns:
            The images of the block that the tower has to see: decoded, unchanged since the plain view was made, and the
            first with their bytes.
        """
        offset = block.start - self.rows.start
        rows = slice(offset, offset + len(block.status))
        self.hash[rows] = block.hash
        if 0 in self.views:
            self.status[rows] = block.status
        usable = block.status == Status.EMBEDDED
        if self.known_hash is not None:  # a view of another image would be trained with this one's captions
            usable &= (block.hash == self.known_hash[rows]).all(axis=1)
        to_embed = []
        for i in np.flatnonzero(usable).tolist():
            first = self.first.setdefault(block.hash[i].tobytes(), offset + i)
            if first == offset + i:
                to_embed.append(i)
            else:
                self.copies.append((offset + i, first))
        return to_embed

    def put(self, number: int, rows: NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Fill rows of one of the views with raw features `[len(rows), D]`."""
        norm = np.linalg.norm(features.astype(np.float64), axis=1)
        finite = (norm > 0) & (norm <= np.finfo(np.float32).max)  # False for NaN; the norm is stored as float32
        if self.views[number] == 0:
            self.status[rows[~finite]] = Status.NOT_FINITE
        self.emb[number, rows] = np.where(finite[:, None], features, 0) / np.where(finite, norm, 1)[:, None]
        self.norm[number, rows] = np.where(finite, norm, 0)

    def complete(self, cache: Cache) -> None:
        """Fill the rows that were in no batch.

        The plain view decides the status of an image; a further view that cannot be made repeats the plain one.
        """
        if self.copies:
            rows, firsts = np.array(self.copies).T
            self.emb[:, rows], self.norm[:, rows] = self.emb[:, firsts], self.norm[:, firsts]
            if 0 in self.views:
                self.status[rows] = self.status[firsts]
        failed = self.status != Status.EMBEDDED
        self.emb[:, failed], self.norm[:, failed] = 0, 0
        for number, view in enumerate(self.views):
            repeats = np.flatnonzero(~failed & (self.norm[number] == 0)) if view else np.array([], np.int64)
            if len(repeats):
                plain = self.emb[0][repeats] if 0 in self.views else cache.emb_rows(self.rows.start + repeats)
                self.emb[number, repeats] = plain


@dataclass(slots=True)
class _Batch:
    """Images of a chunk on their way through the tower, in all its views.

    Attributes:
        chunk: that they belong to.
        pixels: `[views, B, height, width, 3]`, as `ImageEncoder.staging` gave it.
        rows: of the images, within the chunk.
        features: of each view.
        is_last: whether the chunk ends with this batch.
    """

    chunk: PendingChunk
    pixels: NDArray[np.uint8]
    rows: list[int] = field(default_factory=list)
    features: list[PendingFeatures] = field(default_factory=list)
    is_last: bool = False


class ChunkAssembler:
    """Gathers images into batches of one shape, and hands each chunk on when it has all its features.

    Attributes:
        num_images: images taken in.
        failed: images taken in that could not be read or decoded, by status.
        num_embedded: images embedded, in the chunks handed on.
        num_copied: images of those chunks whose rows copy another one's.
        tower_s: seconds spent waiting for the tower.
    """

    def __init__(
        self,
        cache: Cache,
        tower: ImageEncoder,
        num_views: int,
        on_chunk: Callable[[PendingChunk], None],
    ) -> None:
        """Allocate the memory of the batches.

        Args:
            cache: open for writing.
            tower: that computes the features.
            num_views: most views of a chunk.
            on_chunk: called with each complete chunk, in order.
        """
        geometry = ResizeCrop.from_preprocess(cache.info.encoder.preprocess)
        shape = (num_views, cache.info.batch_size, geometry.height, geometry.width, 3)
        self._cache, self._tower, self._on_chunk = cache, tower, on_chunk
        self._free = [tower.staging(shape) for _ in range(tower.in_flight + 1)]
        self._in_flight: deque[_Batch] = deque()
        self._gathered: _Batch | None = None
        self._chunk: PendingChunk | None = None
        self.num_images = self.num_embedded = self.num_copied = 0
        self.failed: Counter[str] = Counter()
        self.tower_s = 0.0

    def add(self, block: DecodedBlock) -> None:
        """Take in the next block of rows; its pixels are copied."""
        if self._chunk is None:
            self._chunk = PendingChunk.begin(self._cache, block.start, block.views)
        chunk, offset = self._chunk, block.start - self._chunk.rows.start
        to_embed = chunk.take(block)
        while to_embed:
            batch = self._gathered = self._gathered or _Batch(chunk, self._free.pop())
            begun = len(batch.rows)
            taken = to_embed[: self._cache.info.batch_size - begun]
            for i, pixels in enumerate(block.pixels):
                np.take(pixels, taken, axis=0, out=batch.pixels[i, begun : begun + len(taken)], mode="clip")
            batch.rows += [offset + i for i in taken]
            to_embed = to_embed[len(taken) :]
            if len(batch.rows) == self._cache.info.batch_size:
                self._submit(batch)
        self.num_images += len(block.status)
        if 0 in block.views:
            self.failed.update(Status(code).label for code in block.status[block.status != Status.EMBEDDED].tolist())
        if block.start + len(block.status) == chunk.rows.stop:
            batch = self._gathered or _Batch(chunk, self._free.pop())
            batch.is_last = True
            self._submit(batch)
            self._chunk = None

    def finish(self) -> None:
        """Wait for all submitted batches."""
        while self._in_flight:
            self._collect()

    def _submit(self, batch: _Batch) -> None:
        """Submit a batch, padded with zeros to its fixed shape."""
        self._gathered = None
        if batch.rows:
            started = time.perf_counter()
            for pixels in batch.pixels[: len(batch.chunk.views)]:
                pixels[len(batch.rows) :] = 0
                batch.features.append(self._tower.submit(pixels, len(batch.rows)))
            self.tower_s += time.perf_counter() - started
        self._in_flight.append(batch)
        while len(self._in_flight) > self._tower.in_flight:
            self._collect()

    def _collect(self) -> None:
        """Wait for the oldest batch; hand its chunk on if the chunk ends with it."""
        batch = self._in_flight.popleft()
        chunk, dim = batch.chunk, self._cache.info.encoder.dim
        rows = np.array(batch.rows, np.int64)
        for number, wait_for_features in enumerate(batch.features):
            started = time.perf_counter()
            features = wait_for_features()
            self.tower_s += time.perf_counter() - started
            if features.shape != (len(rows), dim):
                raise CacheError(
                    f"the tower gave features of shape {features.shape}, the cache was planned for "
                    f"({len(rows)}, {dim}): use the tower that planned it"
                )
            chunk.put(number, rows, features)
        self._free.append(batch.pixels)
        if batch.is_last:
            chunk.complete(self._cache)
            self.num_embedded += chunk.num_embedded
            self.num_copied += len(chunk.copies)
            self._on_chunk(chunk)
