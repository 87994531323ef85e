"""HDF5 files of sealed caches: a read-only Zarr store over a file, and the writer that `convert` uses.

The datasets are the arrays of docs/cache.md. Reading never changes a file, so it needs no file locks, which many
clusters lack.
"""

import asyncio
import io
import json
import math
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import google_crc32c
import h5py
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import MemoryStore

from ..errors import AbsentObjectError, CacheError
from ..format import ATTRIBUTE, CHECKSUM
from ..metadata import with_checksum
from .ragged import create_array

CONVERT_AGAIN = "convert it again from the cache that this is a copy of"
Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and chunk shape."""
# From HDF5 1.10 on, all metadata has checksums, and a file that was not closed is marked as such.
LIBVER = ("v110", "v110")
UNREADABLE = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError)  # h5py has no error of its own


class Hdf5Store(Store):
    """Read-only Zarr store over an HDF5 file: metadata derived from the datasets, chunks with a crc32c tail.

    Attributes:
        path: of the file.
    """

    supports_writes = False
    supports_deletes = False
    supports_partial_writes = False
    supports_listing = True

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            CacheError: it is no HDF5 file, unfinished, damaged, or not one of clipglot's.
        """
        super().__init__(read_only=True)
        self.path = path
        self._lock = Lock()  # HDF5 is not thread-safe, and a read is several calls
        try:
            self._file = h5py.File(path, "r", locking=False)
            groups, self._datasets = _nodes(self._file)
            self._documents = _documents(self._file, groups, self._datasets)
        except UNREADABLE as error:
            raise CacheError(f"{path} is no whole HDF5 cache ({_reason(error)}): {CONVERT_AGAIN}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hdf5Store) and other.path == self.path

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder; nothing if there is none."""
        prefix = f"{folder}/" if folder else ""
        return list({key[len(prefix) :].partition("/")[0] for key in self._keys() if key.startswith(prefix)})

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Metadata or a chunk; None where there is no such key.

        Raises:
            AbsentObjectError: the chunk was never written.
            OSError: it is damaged.
        """
        prototype = prototype or default_buffer_prototype()
        if key in self._documents:
            content = self._documents[key]
        else:
            name, _, index = key.partition("/c/")
            if name not in self._datasets or not index:
                return None
            content = await asyncio.to_thread(self._chunk, name, tuple(map(int, index.split("/"))))
        return prototype.buffer.from_bytes(_cut(content, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Parts of some values."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        return key in self._keys()

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        for key in self._keys():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys that begin so."""
        for key in self._keys():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """What lies directly in a folder."""
        for name in self.names(prefix.rstrip("/")):
            yield name

    async def set(self, key: str, value: Buffer) -> None:
        """Refused: the store is read only."""
        self._check_writable()

    async def set_partial_values(self, key_start_values: Iterable[tuple[str, int, bytes]]) -> None:
        """Refused: the store is read only."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refused: the store is read only."""
        self._check_writable()

    def _keys(self) -> Iterator[str]:
        yield from self._documents
        for name, (shape, chunks) in self._datasets.items():
            for index in np.ndindex(*grid(shape, chunks)):
                yield "/".join((name, "c", *map(str, index)))

    def _chunk(self, name: str, index: tuple[int, ...]) -> bytes:
        """The bytes that Zarr would hold: the whole chunk, zeros beyond the edge, and its crc32c."""
        shape, chunks = self._datasets[name]
        where = region(shape, chunks, index)
        try:
            with self._lock:
                dataset = self._file[name]
                stored = dataset.id.get_chunk_info_by_coord(tuple(side.start for side in where)).byte_offset
                held = dataset[where]
        except UNREADABLE as error:
            raise OSError(_reason(error)) from error
        if stored is None:  # HDF5 makes it zeros
            raise AbsentObjectError(f"{self.path}: {name}/c/{'/'.join(map(str, index))} is absent: {CONVERT_AGAIN}")
        chunk = np.zeros(chunks, held.dtype)
        chunk[tuple(map(slice, held.shape))] = held
        raw: bytes = chunk.tobytes()
        return raw + int(google_crc32c.value(raw)).to_bytes(4, "little")


def grid(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """How many chunks an array has along each axis.

    >>> grid((1, 40, 16), (1, 8, 16))
    (1, 5, 1)
    """
    return tuple(math.ceil(size / chunk) for size, chunk in zip(shape, chunks, strict=True))


def region(shape: tuple[int, ...], chunks: tuple[int, ...], index: tuple[int, ...]) -> tuple[slice, ...]:
    """The part of an array that a chunk holds.

    >>> region((40,), (16,), (2,))
    (slice(32, 40, None),)
    """
    return tuple(slice(i * c, min((i + 1) * c, n)) for n, c, i in zip(shape, chunks, index, strict=True))


def _nodes(file: h5py.File) -> tuple[list[str], dict[str, Layout]]:
    """The names of the groups, and each dataset's layout.

    Raises:
        ValueError: a dataset is in another encoding.
    """
    groups: list[str] = []
    datasets: dict[str, Layout] = {}

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Group):
            groups.append(name)
            return
        if node.chunks is None or not node.fletcher32 or node.dtype.byteorder == ">":
            raise ValueError(f"{name} is not in little-endian chunks with fletcher32")
        datasets[name] = node.shape, node.chunks

    file.visititems(visit)
    return groups, datasets


def _documents(file: h5py.File, groups: Iterable[str], datasets: Mapping[str, Layout]) -> dict[str, bytes]:
    """Every zarr.json, as zarr itself writes it.

    Raises:
        ValueError: no metadata, or not what its checksum says.
    """
    if ATTRIBUTE not in file.attrs:
        raise ValueError(f"no clipglot cache: attribute {ATTRIBUTE!r} is absent")
    text = bytes(file.attrs[ATTRIBUTE])
    if google_crc32c.value(text) != int(file.attrs[CHECKSUM]):
        raise ValueError(f"attribute {ATTRIBUTE!r} does not match its checksum")
    documents: dict[str, Buffer] = {}
    root = zarr.create_group(MemoryStore(documents), zarr_format=3, attributes=with_checksum(json.loads(text)))
    for name in groups:
        root.create_group(name)
    for name, (shape, chunks) in datasets.items():
        create_array(root, name, shape, chunks, file[name].dtype.name)
    return {key: value.to_bytes() for key, value in documents.items()}


def _reason(error: BaseException) -> str:
    return str(error).strip("'\"") or type(error).__name__


def _cut(content: bytes, byte_range: ByteRequest | None) -> bytes:
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


class Hdf5Writer:
    """A new file, made by `new_file`."""

    def __init__(self, file: h5py.File, disk: "_Disk") -> None:
        self._file, self._disk = file, disk

    def create_group(self, name: str) -> None:
        """Create a group."""
        self._file.create_group(name)

    def create_array(self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> "Hdf5Array":
        """A dataset in the one encoding of the format, as `ragged.create_array` makes an array."""
        room = tuple(map(max, shape, chunks))  # a chunk may be larger than what it holds, as in Zarr
        little_endian = np.dtype(dtype).newbyteorder("<")
        dataset = self._file.create_dataset(
            name, shape, dtype=little_endian, chunks=chunks, maxshape=room, fletcher32=True, fillvalue=0
        )
        return Hdf5Array(dataset, self._disk)


class Hdf5Array:
    """A dataset that is written by assigning to its regions."""

    def __init__(self, dataset: h5py.Dataset, disk: "_Disk") -> None:
        self._dataset, self._disk = dataset, disk

    def __setitem__(self, where: tuple[slice, ...], values: NDArray[Any]) -> None:
        self._dataset[where] = values
        self._disk.raise_failure()


@contextmanager
def new_file(path: Path, metadata: Any) -> Iterator[Hdf5Writer]:
    """Write a file anew; the metadata is what a Zarr group has as its attribute.

    Raises:
        OSError: it could not be written.
    """
    text = json.dumps(metadata, ensure_ascii=False).encode()
    with _Disk(path, "w+") as disk:
        with h5py.File(disk, "w", libver=LIBVER) as file:
            file.attrs.create(ATTRIBUTE, np.bytes_(text), dtype=h5py.string_dtype("utf-8", len(text)))
            # Attributes above 64 KB carry no checksum of HDF5's own.
            file.attrs[CHECKSUM] = np.uint32(google_crc32c.value(text))
            yield Hdf5Writer(file, disk)
        disk.raise_failure()


class _Disk(io.FileIO):
    """What HDF5 writes through. The process dies where HDF5 cannot close a file, so a failure is kept, to be raised."""

    _failure: OSError | None = None

    def raise_failure(self) -> None:
        """Raise what went wrong first, if anything did."""
        if self._failure:
            raise self._failure

    def write(self, data: Any) -> int:
        """Write all of it."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest):
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._failure = self._failure or error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return size or 0
