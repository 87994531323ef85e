"""HDF5 files of sealed caches: a read-only Zarr store over a file, and the writer of `clipglot convert`.

The datasets are the arrays of docs/cache.md. Reading never changes a file, so it works without file locks, which many
clusters do not have.
"""

import asyncio
import io
import json
import math
import os
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
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import MemoryStore

from ..errors import AbsentObjectError, CacheError
from ..format import ATTRIBUTE, CHECKSUM, SETS_ATTRIBUTE, SETS_CHECKSUM
from ..metadata import checksum_of, with_checksum
from .encoding import CRC_BYTES, WrongLayoutError, create_array, require_bounded, slice_bytes
from .regular import MAX_METADATA_BYTES, open_regular

CONVERT_AGAIN = "convert it again from the cache that this is a copy of"
Layout = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and chunk shape."""
# From HDF5 1.10 on, all metadata has checksums, and a file that was not closed is marked.
LIBVER = ("v110", "v110")
# h5py has no error type of its own.
UNREADABLE = (OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, ArithmeticError, MemoryError)
MAX_NODES = 10_000  # groups and datasets of a file
MAX_DEPTH = 8  # of its groups


class Hdf5Store(Store):
    """Read-only Zarr store over an HDF5 file.

    Zarr metadata are derived from the datasets; each chunk gets a crc32c tail, as in a Zarr cache.

    Attributes:
        path: path of the file.
    """

    supports_writes = False
    supports_deletes = False
    supports_partial_writes = False
    supports_listing = True

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            CacheError: it is not an HDF5 file, unfinished, damaged, or not written by clipglot.
        """
        super().__init__(read_only=True)
        self.path = path
        self._lock = Lock()  # HDF5 is not thread-safe, and a read is several calls
        try:
            os.close(open_regular(path))
            self._file = h5py.File(path, "r", locking=False)
            groups, self._datasets = _list_nodes(self._file)
            self._documents = _zarr_documents(self._file, groups, self._datasets)
        except UNREADABLE as error:
            raise CacheError(f"{path} is no whole HDF5 cache ({_reason(error)}): {CONVERT_AGAIN}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hdf5Store) and other.path == self.path

    def names(self, folder: str) -> list[str]:
        """Names directly in a folder; empty if the folder is absent."""
        prefix = f"{folder}/" if folder else ""
        return list({key[len(prefix) :].partition("/")[0] for key in self._keys() if key.startswith(prefix)})

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """A metadata file or a chunk; None for an unknown key.

        Raises:
            AbsentObjectError: the chunk was never written.
            OSError: the chunk is damaged.
        """
        prototype = prototype or default_buffer_prototype()
        if key in self._documents:
            content = self._documents[key]
        else:
            name, _, index = key.partition("/c/")
            if name not in self._datasets or not index:
                return None
            content = await asyncio.to_thread(self._read_chunk, name, tuple(map(int, index.split("/"))))
        return prototype.buffer.from_bytes(slice_bytes(content, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Byte ranges of several values."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether the store has a key."""
        return key in self._keys()

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        for key in self._keys():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys with a prefix."""
        for key in self._keys():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly in a folder."""
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
                yield _key(name, index)

    def chunk_sizes(self, name: str) -> dict[str, int]:
        """Sizes of the stored chunks of an array, by key."""
        sizes: dict[str, int] = {}
        _, chunks = self._datasets[name]

        def note(chunk: h5py.h5d.StoreInfo) -> None:
            index = tuple(offset // size for offset, size in zip(chunk.chunk_offset, chunks, strict=True))
            sizes[_key(name, index)] = chunk.size

        with self._lock:
            self._file[name].id.chunk_iter(note)
        return sizes

    def _read_chunk(self, name: str, index: tuple[int, ...]) -> bytes:
        """Bytes of a chunk as Zarr stores it: full size, zeros beyond the edge of the array, and the crc32c."""
        shape, chunks = self._datasets[name]
        slices = region(shape, chunks, index)
        try:
            with self._lock:
                dataset = self._file[name]
                stored = dataset.id.get_chunk_info_by_coord(tuple(part.start for part in slices))
                if stored.byte_offset is None:  # never written; HDF5 would read it as zeros
                    raise AbsentObjectError(f"{self.path}: {_key(name, index)} is absent: {CONVERT_AGAIN}")
                expected = math.prod(chunks) * dataset.dtype.itemsize + CRC_BYTES
                if stored.size != expected or stored.filter_mask:
                    raise OSError(f"{stored.size:,} bytes with the fletcher32, expected {expected:,}")
                values = dataset[slices]
        except UNREADABLE as error:
            raise OSError(_reason(error)) from error
        chunk = np.zeros(chunks, values.dtype)
        chunk[tuple(map(slice, values.shape))] = values
        raw: bytes = chunk.tobytes()
        return raw + int(google_crc32c.value(raw)).to_bytes(4, "little")


def _list_nodes(file: h5py.File) -> tuple[list[str], dict[str, Layout]]:
    """Names of the groups, and layouts of the datasets by name.

    Raises:
        ValueError: a dataset has another encoding, or a name is a link: out of the file, or round in circles.
    """
    groups: list[str] = []
    datasets: dict[str, Layout] = {}
    seen = {h5py.h5o.get_info(file.id).addr}

    def visit(group: h5py.Group, prefix: str) -> None:
        for child in group:
            name = f"{prefix}{child}"
            if not isinstance(group.get(child, getlink=True), h5py.HardLink):
                raise ValueError(f"{name} is a link to elsewhere")
            node = group[child]
            address = h5py.h5o.get_info(node.id).addr
            if address in seen or len(seen) > MAX_NODES:
                raise ValueError(f"{name} is a second name of another, or one of more than {MAX_NODES:,}")
            seen.add(address)
            if isinstance(node, h5py.Group):
                if name.count("/") >= MAX_DEPTH:
                    raise ValueError(f"{name} lies deeper than any array of a cache")
                groups.append(name)
                visit(node, f"{name}/")
            else:
                datasets[name] = _layout(node, name)

    visit(file, "")
    return groups, datasets


def _layout(node: Any, name: str) -> Layout:
    """Layout of a dataset, which is only read if it is encoded as `Hdf5Writer` does it.

    Raises:
        ValueError: it is not: compressed, in other files, or with chunks of no bounded size and number.
    """
    if not isinstance(node, h5py.Dataset):
        raise ValueError(f"{name} is no dataset")
    properties = node.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    is_chunked = properties.get_layout() == h5py.h5d.CHUNKED and node.chunks is not None
    if not is_chunked or filters != [h5py.h5z.FILTER_FLETCHER32] or node.dtype.byteorder == ">":
        raise ValueError(f"{name} is not in little-endian chunks with fletcher32 alone")
    if node.dtype.kind not in "uif" or not isinstance(node.shape, tuple):
        raise ValueError(f"{name} holds no numbers")
    try:
        require_bounded(node.shape, node.chunks, node.dtype.itemsize)
    except WrongLayoutError as error:
        raise ValueError(f"{name}: {error}") from error
    return node.shape, node.chunks


def _zarr_documents(file: h5py.File, groups: Iterable[str], datasets: Mapping[str, Layout]) -> dict[str, bytes]:
    """Contents of each zarr.json by key, as zarr itself writes them.

    Raises:
        ValueError: the metadata are absent, or do not match their checksum.
    """
    attributes = with_checksum(_read_json(file, ATTRIBUTE, CHECKSUM))
    if SETS_ATTRIBUTE in file.attrs or SETS_CHECKSUM in file.attrs:
        sets = _read_json(file, SETS_ATTRIBUTE, SETS_CHECKSUM)
        attributes |= {SETS_ATTRIBUTE: sets, SETS_CHECKSUM: checksum_of(sets)}
    documents: dict[str, Buffer] = {}
    root = zarr.create_group(MemoryStore(documents), zarr_format=3, attributes=attributes)
    for name in groups:
        root.create_group(name)
    for name, (shape, chunks) in datasets.items():
        create_array(root, name, shape, chunks, file[name].dtype.name)
    return {key: value.to_bytes() for key, value in documents.items()}


def _read_json(file: h5py.File, name: str, checksum_name: str) -> Any:
    """JSON of an attribute, after a check against its checksum, which is another attribute.

    Raises:
        ValueError: either is absent, or they do not match.
    """
    for each in (name, checksum_name):
        if each not in file.attrs:
            raise ValueError(f"no clipglot cache: attribute {each!r} is absent")
    attribute = file.attrs.get_id(name)
    if attribute.dtype.kind != "S" or attribute.shape != () or attribute.dtype.itemsize > MAX_METADATA_BYTES:
        raise ValueError(f"attribute {name!r} is no text of at most {MAX_METADATA_BYTES:,} bytes")
    text = bytes(file.attrs[name])
    checksum = file.attrs.get_id(checksum_name)
    if (
        checksum.shape != ()
        or checksum.dtype.kind not in "ui"
        or google_crc32c.value(text) != int(file.attrs[checksum_name])
    ):
        raise ValueError(f"attribute {name!r} does not match its checksum")
    return json.loads(text)


def _key(name: str, index: tuple[int, ...]) -> str:
    return "/".join((name, "c", *map(str, index)))


def _reason(error: BaseException) -> str:
    return str(error).strip("'\"") or type(error).__name__


def grid(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Number of chunks of an array along each axis.

    >>> grid((1, 40, 16), (1, 8, 16))
    (1, 5, 1)
    """
    return tuple(math.ceil(size / chunk) for size, chunk in zip(shape, chunks, strict=True))


def region(shape: tuple[int, ...], chunks: tuple[int, ...], index: tuple[int, ...]) -> tuple[slice, ...]:
    """Slices of an array that a chunk covers.

    >>> region((40,), (16,), (2,))
    (slice(32, 40, None),)
    """
    return tuple(slice(i * c, min((i + 1) * c, n)) for n, c, i in zip(shape, chunks, index, strict=True))


@contextmanager
def new_file(path: Path, attributes: Mapping[str, Any]) -> Iterator["Hdf5Writer"]:
    """Create an HDF5 file, or replace one.

    Args:
        path: path of the file.
        attributes: of the root group of a Zarr cache: metadata, and caption sets if there are some.

    Raises:
        OSError: the file could not be written.
    """
    with _DeferredErrorFile(path, "w+") as disk:
        with h5py.File(disk, "w", libver=LIBVER) as file:
            for name, checksum in ((ATTRIBUTE, CHECKSUM), (SETS_ATTRIBUTE, SETS_CHECKSUM)):
                if name in attributes:
                    text = json.dumps(attributes[name], ensure_ascii=False).encode()
                    file.attrs.create(name, np.bytes_(text), dtype=h5py.string_dtype("utf-8", len(text)))
                    # HDF5 itself has no checksum for attributes above 64 KB.
                    file.attrs[checksum] = np.uint32(google_crc32c.value(text))
            yield Hdf5Writer(file, disk)
        disk.raise_failure()


class Hdf5Writer:
    """Writer of a new HDF5 file, yielded by `new_file`."""

    def __init__(self, file: h5py.File, disk: "_DeferredErrorFile") -> None:
        self._file, self._disk = file, disk

    def create_group(self, name: str) -> None:
        """Create a group."""
        self._file.create_group(name)

    def create_array(self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> "Hdf5Array":
        """Create a dataset in the encoding of the cache format, the counterpart of `ragged.create_array`."""
        max_shape = tuple(map(max, shape, chunks))  # a chunk may be larger than the array, as in Zarr
        little_endian = np.dtype(dtype).newbyteorder("<")
        dataset = self._file.create_dataset(
            name, shape, dtype=little_endian, chunks=chunks, maxshape=max_shape, fletcher32=True, fillvalue=0
        )
        return Hdf5Array(dataset, self._disk)


class Hdf5Array:
    """Dataset of a new HDF5 file, written by assignment to slices."""

    def __init__(self, dataset: h5py.Dataset, disk: "_DeferredErrorFile") -> None:
        self._dataset, self._disk = dataset, disk

    def __setitem__(self, slices: tuple[slice, ...], values: NDArray[Any]) -> None:
        self._dataset[slices] = values
        self._disk.raise_failure()


class _DeferredErrorFile(io.FileIO):
    """File for HDF5 to write to that keeps write errors, to be raised later.

    The process dies where HDF5 cannot close a file, so no write may fail.
    """

    _failure: OSError | None = None

    def raise_failure(self) -> None:
        """Raise the first write error, if any."""
        if self._failure:
            raise self._failure

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest):
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._failure = self._failure or error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Shorten or extend the file."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._failure = self._failure or error
            return size or 0
