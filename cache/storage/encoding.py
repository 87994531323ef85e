"""Encoding of a cache's arrays: raw little-endian chunks with a crc32c tail, created and opened in one place.

A zarr.json can declare anything. So an array is opened only in this encoding, of which nothing inflates, and with
chunks of a bounded size and number; the store then reads no more of a chunk than the array declares.
"""

import math
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.codecs import BytesCodec, Crc32cCodec

from ..format import MAX_CHUNK_BYTES, MAX_CHUNKS
from .regular import MAX_METADATA_BYTES

CRC_BYTES = 4
CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
PLAIN = {
    "zarr_format": 3,
    "fill_value": 0,
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
}
# Errors of zarr on files that it cannot read; it has no type of its own for them.
UNREADABLE_METADATA = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
UNREADABLE_CHUNK = (OSError, ValueError, TypeError, IndexError)


class WrongLayoutError(ValueError):
    """An array that is not laid out as the format says."""


class ChunkLimits:
    """Most bytes to read of each object of a store, known from the arrays that were opened."""

    def __init__(self) -> None:
        self._chunk_bytes: dict[str, int] = {}

    def note(self, array: zarr.Array[Any]) -> None:
        """Keep the size of an array's chunks."""
        self._chunk_bytes[array.path] = chunk_file_bytes(array)

    def max_bytes(self, key: str) -> int:
        """The most bytes to read of a key."""
        name, _, index = key.partition("/c/")
        return self._chunk_bytes.get(name, MAX_CHUNK_BYTES + CRC_BYTES) if index else MAX_METADATA_BYTES


def create_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str
) -> zarr.Array[Any]:
    """Create an array in the encoding of caches, all chunks written."""
    return group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        serializer=BytesCodec(),
        compressors=[Crc32cCodec()],
        fill_value=0,
        config={"write_empty_chunks": True},  # a chunk of zeros holds values; an absent one means "not done"
    )


def open_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Open an array of a group.

    Raises:
        KeyError: the name is absent.
        TypeError: the name is that of a group.
        WrongLayoutError: the array has another encoding, or more or larger chunks than a cache has.
    """
    node = group[name]
    if not isinstance(node, zarr.Array):
        raise TypeError(f"{name} is a group, expected an array")
    require_raw(node)
    require_bounded(node.shape, node.chunks, node.dtype.itemsize)
    if isinstance(limits := getattr(node.store, "limits", None), ChunkLimits):
        limits.note(node)
    return node


def chunk_file_bytes(array: zarr.Array[Any]) -> int:
    """Size of each chunk file."""
    return math.prod(array.chunks) * array.dtype.itemsize + CRC_BYTES


def require_bounded(shape: tuple[int, ...], chunks: tuple[int, ...], item_bytes: int) -> None:
    """Raise unless the chunks of an array have a bounded size and number.

    Raises:
        WrongLayoutError: they have not.
    """
    declared = f"shape {shape} in chunks of {chunks}"
    if not shape or min(chunks) < 1:
        raise WrongLayoutError(f"{declared}, expected at least one axis and one value a chunk")
    if math.prod(chunks) * item_bytes > MAX_CHUNK_BYTES:
        size = math.prod(chunks) * item_bytes
        raise WrongLayoutError(f"{declared}: a chunk would have {size:,} bytes, at most {MAX_CHUNK_BYTES:,} are read")
    num_chunks = math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))
    if num_chunks > MAX_CHUNKS:
        raise WrongLayoutError(f"{declared} is {num_chunks:,} chunks, more than {MAX_CHUNKS:,}")


def slice_bytes(content: bytes, byte_range: ByteRequest | None) -> bytes:
    """The part of a file that zarr asks for."""
    match byte_range:
        case None:
            return content
        case RangeByteRequest(start, end):
            return content[start:end]
        case OffsetByteRequest(offset):
            return content[offset:]
        case SuffixByteRequest(suffix):
            return content[-suffix:]
    raise TypeError(f"unknown byte range {byte_range!r}")


def require_raw(array: zarr.Array[Any]) -> None:
    """Raise unless an array has the encoding of caches.

    Raises:
        WrongLayoutError: it has another, such as one that inflates.
    """
    stored = array.metadata.to_dict()
    codecs: Any = stored.get("codecs") or ()
    names = [codec.get("name") if isinstance(codec, dict) else codec for codec in codecs]
    is_raw = [*codecs] == CODECS or (array.dtype.itemsize == 1 and [*codecs] == [{"name": "bytes"}, CODECS[1]])
    is_plain = all(stored.get(name) == value for name, value in PLAIN.items()) and array.dtype.kind in "uif"
    if not (is_raw and is_plain and stored["chunk_grid"]["name"] == "regular"):  # type: ignore[index,call-overload]
        raise WrongLayoutError(
            f"{array.dtype} stored as {' + '.join(map(str, names))}, expected numbers as raw little-endian bytes + "
            "crc32c in regular chunks (docs/cache.md)"
        )
