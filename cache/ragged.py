"""Ragged UTF-8 arrays: a Zarr group of `bytes [total] uint8` and `offsets [N+1] int64`, written as a stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec

from .format import CHUNK_BYTES

# What zarr raises on files that it cannot make sense of; it has no error of its own for them.
UNREADABLE_METADATA = (OSError, ValueError, TypeError, KeyError, AttributeError)
UNREADABLE_CHUNK = (OSError, ValueError, TypeError, IndexError)


@dataclass(frozen=True, slots=True)
class Texts:
    """n UTF-8 texts in memory, as two arrays: text i is `raw[offsets[i]:offsets[i + 1]]`; `offsets[0]` is 0."""

    raw: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> "Texts":
        """Encoded texts, joined.

        >>> Texts.of([b"ab", b"", b"c"]).offsets
        array([0, 2, 2, 3])
        """
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=offsets[1:])
        return cls(np.frombuffer(b"".join(texts), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: NDArray[np.int64]) -> "Texts":
        """Some of them, in the order given.

        >>> Texts.of([b"ab", b"", b"c"]).take(np.array([2, 0])).split()
        [b'c', b'ab']
        """
        starts, lengths = self.offsets[rows], np.diff(self.offsets)[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        places = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Texts(self.raw[places], offsets)

    def split(self) -> list[bytes]:
        """One object each."""
        raw = self.raw.tobytes()
        return [raw[a:b] for a, b in pairwise(self.offsets.tolist())]


def create_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str
) -> zarr.Array[Any]:
    """An array in the cache's one encoding: raw little-endian bytes with a crc32c tail, every chunk written."""
    return group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        serializer=BytesCodec(),
        compressors=[Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},  # a chunk of zeros is a fact, an absent one means "not done"
    )


def open_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of the group.

    Raises:
        KeyError, TypeError: there is none of that name.
    """
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise TypeError(f"{name} is a group, expected an array")
    return found


class StreamedArray:
    """An array of unknown length, of numbers or of rows of some, appended to and written in whole chunks.

    Zarr stores the last chunk at full size, so an array that fits one chunk gets a chunk of exactly its length.
    """

    def __init__(self, group: zarr.Group, name: str, dtype: str, *, width: int | None = None) -> None:
        self._group, self._name, self._dtype = group, name, dtype
        self._row = () if width is None else (width,)
        self._rows = CHUNK_BYTES // (np.dtype(dtype).itemsize * (width or 1))
        self._array: zarr.Array[Any] | None = None
        self._pending: list[NDArray[Any]] = []
        self._num_pending = 0
        self._length = 0

    def append(self, values: NDArray[Any]) -> None:
        """Add values at the end."""
        self._pending.append(values)
        self._num_pending += len(values)
        if self._num_pending >= self._rows:
            self._flush(self._num_pending // self._rows * self._rows)

    def close(self) -> None:
        """Write what is left; an empty array is an array too."""
        if self._num_pending or self._array is None:
            self._flush(self._num_pending)

    def _flush(self, count: int) -> None:
        if self._array is None:
            chunk = max(1, min(self._rows, count))
            self._array = create_array(self._group, self._name, (0, *self._row), (chunk, *self._row), self._dtype)
        values = np.concatenate(self._pending) if self._pending else np.zeros((0, *self._row), self._dtype)
        self._array.resize((self._length + count, *self._row))
        if count:
            self._array[self._length :] = values[:count]
        self._length += count
        self._pending, self._num_pending = [values[count:]], len(values) - count


class RaggedWriter:
    """Appends texts to a new ragged array; `close` completes it."""

    def __init__(self, group: zarr.Group, name: str) -> None:
        ragged = group.create_group(name)
        self._bytes = StreamedArray(ragged, "bytes", "uint8")
        self._offsets = StreamedArray(ragged, "offsets", "int64")
        self._offsets.append(np.zeros(1, np.int64))
        self._end = 0

    def append(self, texts: Texts) -> None:
        """Add texts at the end."""
        self._offsets.append(self._end + texts.offsets[1:])
        self._end += int(texts.offsets[-1])
        self._bytes.append(texts.raw)

    def close(self) -> None:
        """Write what is left in memory."""
        self._bytes.close()
        self._offsets.close()


class RaggedReader:
    """Reads rows of a ragged array; only the chunks that hold them are touched."""

    def __init__(self, group: zarr.Group, name: str) -> None:
        self._bytes, self._offsets = open_array(group, f"{name}/bytes"), open_array(group, f"{name}/offsets")

    def __len__(self) -> int:
        return int(self._offsets.shape[0]) - 1

    def read(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The texts of rows `start` to `stop` (exclusive; all by default)."""
        return [text.decode() for text in self.texts(start, stop).split()]

    def texts(self, start: int = 0, stop: int | None = None) -> Texts:
        """The same as arrays."""
        stop = len(self) if stop is None else min(stop, len(self))
        if start >= stop:
            return Texts.of([])
        offsets = np.asarray(self._offsets[start : stop + 1])
        raw = np.asarray(self._bytes[int(offsets[0]) : int(offsets[-1])])
        return Texts(raw, offsets - offsets[0])
