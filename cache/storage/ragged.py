"""Ragged arrays of UTF-8 texts on disk: Zarr groups of `bytes [total] uint8` and `offsets [N+1] int64`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..format import CHUNK_BYTES
from .encoding import create_array, open_array
from .ragged_bytes import RaggedBytes

ROWS_AT_A_TIME = 8192
PIECE_BYTES = 2**26  # of texts reordered in memory at a time


class WrongOffsetsError(ValueError):
    """Offsets of a ragged array that do not lie in its bytes, in ascending order."""


class StreamedArray:
    """Writer of an array whose length is not known beforehand, in whole chunks.

    Zarr stores the last chunk at full size, so an array that fits one chunk gets a chunk of exactly its length.

    Args:
        group: parent group.
        name: of the array.
        dtype: of the array.
        width: W of rows `[W]`; None for numbers.
    """

    def __init__(self, group: zarr.Group, name: str, dtype: str, *, width: int | None = None) -> None:
        self._group, self._name, self._dtype = group, name, dtype
        self._row_shape = () if width is None else (width,)
        self._chunk_rows = CHUNK_BYTES // (np.dtype(dtype).itemsize * (width or 1))
        self._array: zarr.Array[Any] | None = None
        self._pending: list[NDArray[Any]] = []
        self._num_pending = 0
        self._length = 0

    def append(self, values: NDArray[Any]) -> None:
        """Append values `[n]` or `[n, W]`."""
        self._pending.append(values)
        self._num_pending += len(values)
        if self._num_pending >= self._chunk_rows:
            self._flush(self._num_pending // self._chunk_rows * self._chunk_rows)

    def close(self) -> None:
        """Write pending values; creates the array even if it is empty."""
        if self._num_pending or self._array is None:
            self._flush(self._num_pending)

    def _flush(self, count: int) -> None:
        if self._array is None:
            chunk_rows = max(1, min(self._chunk_rows, count))
            shape, chunks = (0, *self._row_shape), (chunk_rows, *self._row_shape)
            self._array = create_array(self._group, self._name, shape, chunks, self._dtype)
        values = np.concatenate(self._pending) if self._pending else np.zeros((0, *self._row_shape), self._dtype)
        self._array.resize((self._length + count, *self._row_shape))
        if count:
            self._array[self._length :] = values[:count]
        self._length += count
        self._pending, self._num_pending = [values[count:]], len(values) - count


class RaggedWriter:
    """Writer of a new ragged array, completed by `close`."""

    def __init__(self, group: zarr.Group, name: str) -> None:
        ragged = group.create_group(name)
        self._bytes = StreamedArray(ragged, "bytes", "uint8")
        self._offsets = StreamedArray(ragged, "offsets", "int64")
        self._offsets.append(np.zeros(1, np.int64))
        self._end = 0

    def append(self, texts: RaggedBytes) -> None:
        """Append texts."""
        self._offsets.append(self._end + texts.offsets[1:])
        self._end += int(texts.offsets[-1])
        self._bytes.append(texts.raw)

    def close(self) -> None:
        """Write pending texts."""
        self._bytes.close()
        self._offsets.close()


class RaggedReader:
    """Reader of a ragged array. It reads only the chunks that hold the requested rows.

    Offsets that do not ascend within the bytes raise a `WrongOffsetsError`: Arrow takes texts by them unchecked.
    """

    def __init__(self, group: zarr.Group, name: str) -> None:
        self._name = name
        self._bytes, self._offsets = open_array(group, f"{name}/bytes"), open_array(group, f"{name}/offsets")

    def __len__(self) -> int:
        return int(self._offsets.shape[0]) - 1

    def read(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Decoded texts of rows `start` to `stop` (exclusive; all by default)."""
        return [text.decode() for text in self.texts(start, stop).split()]

    def texts(self, start: int = 0, stop: int | None = None) -> RaggedBytes:
        """Texts of rows `start` to `stop` as arrays."""
        stop = len(self) if stop is None else min(stop, len(self))
        if start >= stop:
            return RaggedBytes.of([])
        offsets = self._read_offsets(start, stop + 1)
        raw = np.asarray(self._bytes[int(offsets[0]) : int(offsets[-1])])
        return RaggedBytes(raw, offsets - offsets[0])

    def blocks(self) -> Iterator[RaggedBytes]:
        """Yield all texts in blocks of about `CHUNK_BYTES`."""
        for start, stop in _ranges(self._read_offsets(), CHUNK_BYTES):
            yield self.texts(start, stop)

    def gathered(self, order: NDArray[np.int64]) -> Iterator[RaggedBytes]:
        """Yield texts by row, in the given order.

        Works on pieces of about `PIECE_BYTES`, and reads for each only the blocks that hold some of its texts.

        Args:
            order: rows `[n]`, without repeats.
        """
        offsets = self._read_offsets()
        blocks = _ranges(offsets, CHUNK_BYTES)
        first_rows = np.array([start for start, _ in blocks])
        for piece_start, piece_stop in _ranges(np.append(0, np.cumsum(np.diff(offsets)[order])), PIECE_BYTES):
            piece_rows = order[piece_start:piece_stop]
            ascending = np.argsort(piece_rows, kind="stable")
            cuts = np.searchsorted(piece_rows[ascending], first_rows[1:])
            parts = [
                self.texts(start, stop).take(rows - start)
                for (start, stop), rows in zip(blocks, np.split(piece_rows[ascending], cuts), strict=True)
                if len(rows)
            ]
            piece, inverse = RaggedBytes.joined(parts), np.argsort(ascending, kind="stable")
            del parts
            for start in range(0, len(inverse), ROWS_AT_A_TIME):
                yield piece.take(inverse[start : start + ROWS_AT_A_TIME])

    def _read_offsets(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        offsets = np.asarray(self._offsets[start:stop])
        require_offsets(offsets, int(self._bytes.shape[0]), f"{self._name}/offsets")
        return offsets


def require_offsets(offsets: NDArray[np.int64], end: int, name: str) -> None:
    """Raise unless offsets ascend between 0 and the end of what they lead into.

    Raises:
        WrongOffsetsError: they do not.
    """
    if len(offsets) and not (offsets[0] >= 0 and offsets[-1] <= end and (offsets[1:] >= offsets[:-1]).all()):
        raise WrongOffsetsError(f"{name}: not ascending from 0 to {end:,}")


def _ranges(offsets: NDArray[np.int64], size_bytes: int) -> list[tuple[int, int]]:
    """Split texts into row ranges of at most `size_bytes`, but at least one text each.

    >>> _ranges(np.array([0, 3, 4, 9, 10]), 5)
    [(0, 2), (2, 3), (3, 4)]
    """
    ranges, start = [], 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + size_bytes, side="right")) - 1
        ranges.append((start, max(start + 1, stop)))
        start = ranges[-1][1]
    return ranges
