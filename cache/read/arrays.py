"""Arrays of a cache, read with checks: an error names the chunk that is absent or damaged, and what to do about it."""

import math
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import AbsentObjectError, CacheError, ChunkId, DamagedCacheError, Fault
from ..format import (
    CAPTION_SETS,
    EMB,
    EMBEDDED_ARRAYS,
    KEY,
    NORM,
    STAGED,
    TEXT,
    TEXT_TARGET_ARRAYS,
    CacheInfo,
    CaptionSetInfo,
    layouts,
    set_layouts,
)
from ..location import Location, Url, to_location
from ..metadata import RESTORE, read_caption_sets, read_metadata, write_caption_sets, write_metadata
from ..storage.atomic import PARTIAL
from ..storage.encoding import (
    CRC_BYTES,
    UNREADABLE_CHUNK,
    UNREADABLE_METADATA,
    WrongLayoutError,
    chunk_file_bytes,
    open_array,
)
from ..storage.hdf5 import CONVERT_AGAIN, Hdf5Store
from ..storage.local import ZARR_JSON, DurableLocalStore
from ..storage.open import CacheStore, open_store
from ..storage.ragged import RaggedReader, WrongOffsetsError, require_offsets
from ..storage.ragged_bytes import RaggedBytes
from ..storage.regular import open_regular
from ..storage.remote import UPLOAD_AGAIN, RemoteStore
from .repair import chunk_to_delete, chunks_to_delete, is_in_tokens, repair_instructions

ABSENT = "absent"
OFFSETS = "offsets"  # last part of the name of an array that leads into another
MAX_NAMED = 1000  # absent chunks in one message
MAX_DEPTH = 8  # of the groups of a cache
FEW_CHUNKS = 256  # of an array that is read whole without a listing beforehand
MANY_ROWS = 100_000_000  # that arrays still to be written are not believed to have without proof


class CheckedArrays:
    """Metadata and arrays of a cache in a local folder, in an HDF5 file or at a URL.

    Attributes:
        path: of the cache.
        root: its Zarr group.
        info: its metadata, as last read by `refresh` or written by `write_info`.
    """

    path: Location
    root: zarr.Group
    info: CacheInfo

    def __init__(self, path: Location | str, *, read_only: bool = True) -> None:
        """Open the arrays of a cache.

        Raises:
            CacheError: no cache there, a format that this version does not read, or a store that refuses access.
        """
        self.path = to_location(path)
        self._store = open_store(self.path, read_only=read_only)
        self.refresh()

    def refresh(self) -> None:
        """Read the metadata again, which another process may have changed.

        Raises:
            CacheError: no cache, a damaged one, or a format that this version does not read.
        """
        restore = f"{UPLOAD_AGAIN}, or {RESTORE}" if isinstance(self.path, Url) else RESTORE
        try:
            self.root = zarr.open_group(self._store, mode="r" if self._store.read_only else "r+", zarr_format=3)
            attributes = dict(self.root.attrs)
        except UNREADABLE_METADATA as error:
            raise CacheError(
                f"{self.path} is no cache, or its zarr.json is damaged ({error}): pass a cache; if this was one, "
                f"{restore}"
            ) from error
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._take_info(read_metadata(attributes, str(self.path), restore))
        if self.is_hdf5 and self.info.state != "sealed":
            raise CacheError(f"{self.path} is not sealed, as every cache in an HDF5 file is: {CONVERT_AGAIN}")
        if self.info.state == "planned" and max(self.info.num_images, self.info.num_captions) > MANY_ROWS:
            # Arrays that are still to be written take memory for every row; these show that there are so many rows.
            for name in (f"{KEY}/offsets", f"{TEXT}/offsets"):
                self._require_stored({name: self.array(name)}, None)

    def write_info(self, info: CacheInfo) -> None:
        """Replace the metadata, on disk and here. The cache must be open for writing."""
        if self.is_folder:  # caption sets may have been added since it was opened: their attribute must stay
            self.root = zarr.open_group(self._store, mode="r+", zarr_format=3)
        write_metadata(self.root, info)
        self._take_info(info)

    def caption_sets(self) -> list[CaptionSetInfo]:
        """The further sets of captions, in the order in which they were added.

        Raises:
            DamagedCacheError: what the cache says of them was damaged.
        """
        return read_caption_sets(dict(self.root.attrs), str(self.path))

    def write_caption_sets(self, sets: Sequence[CaptionSetInfo]) -> None:
        """Replace what the cache says of its caption sets. It must be open for writing."""
        write_caption_sets(self.root, sets)

    def _take_info(self, info: CacheInfo) -> None:
        """Go by new metadata: they also say which chunks an object store may lack."""
        self.info = info
        if isinstance(self._store, RemoteStore):
            self._store.may_be_absent = () if info.state == "sealed" else (*EMBEDDED_ARRAYS, *TEXT_TARGET_ARRAYS)

    @property
    def is_folder(self) -> bool:
        """Whether the chunks are files of a local folder, so that they can be mapped."""
        return isinstance(self._store, DurableLocalStore)

    @property
    def is_hdf5(self) -> bool:
        """Whether the cache is an HDF5 file, which is read only."""
        return isinstance(self._store, Hdf5Store)

    @property
    def store(self) -> CacheStore:
        """The store of a cache that can be written: a folder or an object store, no HDF5 file."""
        assert not isinstance(self._store, Hdf5Store)
        return self._store

    @property
    def folder(self) -> Path:
        """The local folder of the cache.

        Raises:
            CacheError: the cache lies at a URL or in an HDF5 file.
        """
        if isinstance(self.path, Url):
            raise CacheError(
                f"{self.path}: rows can be mapped only from a cache on a local disk: copy it there, or train with "
                "--embeddings chunks or device"
            )
        if not self.is_folder:
            raise CacheError(
                f"{self.path}: rows can be mapped only from a Zarr cache: make one with `clipglot convert "
                f"{self.path} OUT.zarr`, or train with --embeddings chunks or device"
            )
        return self.path

    def has(self, name: str) -> bool:
        """Whether the cache should have an array or ragged array, even if it is damaged.

        The metadata name the arrays. Those of an older cache do not: it has the arrays that are stored.
        """
        if self.info.arrays is not None:
            return not {name, f"{name}/bytes"}.isdisjoint(self.info.arrays)
        try:
            return name in self.root
        except UNREADABLE_METADATA:
            return True  # reading it raises the error that explains

    def array(self, name: str) -> zarr.Array[Any]:
        """One array, opened once.

        Raises:
            DamagedCacheError: its metadata are absent or damaged.
        """
        if name not in self._arrays:
            self._arrays[name] = self.reopen(name)
        return self._arrays[name]

    def reopen(self, name: str) -> zarr.Array[Any]:
        """One array, its metadata read again: another process may have resized it.

        Raises:
            DamagedCacheError: its metadata are absent or damaged.
        """
        with self._explain_metadata(name):
            array = open_array(self.root, name)
            if self.info.is_laid_out:
                in_set = name.startswith(f"{CAPTION_SETS}/")
                _require_layout(array, self.info, self.caption_sets() if in_set else ())
            return array

    def require_group(self, name: str) -> None:
        """Raise unless there is a group of that name.

        Raises:
            DamagedCacheError: its metadata are absent or damaged.
        """
        with self._explain_metadata(name):
            if not isinstance(self.root[name], zarr.Group):
                raise TypeError(f"{name} is an array, expected a group")

    def _is_group(self, name: str) -> bool:
        with self._explain_metadata(name):
            return isinstance(self.root[name], zarr.Group)

    @contextmanager
    def _explain_metadata(self, name: str) -> Iterator[None]:
        """Turn errors of zarr on the metadata of an array or group into one that says what to do."""
        try:
            yield
        except UNREADABLE_METADATA as error:
            problem = f": {error}" if isinstance(error, WrongLayoutError) else f" is absent or damaged ({error})"
            remedy = self.remedy([(name, ())] if is_in_tokens(name) else [])
            raise DamagedCacheError(Fault(f"{self.path}: {name}/zarr.json{problem}", remedy)) from error

    def nodes(self) -> tuple[list[str], list[str]]:
        """The names of all stored groups and arrays, known to this version or not; no leftovers of killed writers.

        Raises:
            DamagedCacheError: the metadata of an array are damaged.
        """
        groups: list[str] = []
        arrays: list[str] = []
        sets = {info.group for info in self.caption_sets()}

        def visit(folder: str, names: list[str]) -> None:
            for name in sorted(names):
                path = f"{folder}/{name}".lstrip("/")
                is_leftover = path == STAGED or name.endswith(PARTIAL) or (folder == CAPTION_SETS and name not in sets)
                children = [] if is_leftover or name == ZARR_JSON else self._store.names(path)
                if ZARR_JSON not in children:
                    continue
                if path.count("/") >= MAX_DEPTH:  # links can lead round in circles
                    message = f"{self.path}: {path} lies deeper than any array of a cache"
                    raise DamagedCacheError(Fault(message, "delete it"))
                if self._is_group(path):
                    groups.append(path)
                    visit(path, children)
                else:
                    arrays.append(path)

        visit("", self._store.names(""))
        return groups, arrays

    def read(
        self, name: str, selection: tuple[Any, ...] = (...,), *, only: Collection[tuple[int, ...]] | None = None
    ) -> NDArray[Any]:
        """Read an array, or a part of it.

        Args:
            name: of the array.
            selection: as between the brackets of `array[...]`.
            only: the indices of the chunks that the selection touches; by default all chunks.

        Raises:
            DamagedCacheError: a chunk is absent or damaged.
        """
        with self.checked(name, only=only):
            return np.asarray(self.array(name)[selection])

    def read_chunk(self, name: str, index: tuple[int, ...]) -> NDArray[Any]:
        """Read one chunk of an array, without what lies beyond the array's edge.

        Raises:
            DamagedCacheError: it is absent or damaged.
        """
        with self.checked(name, only=[index]):
            block = np.asarray(self.array(name).blocks[index])
            group, _, last = name.rpartition("/")
            if last == OFFSETS:
                leads_into = f"{group}/{'ids' if is_in_tokens(name) else 'bytes'}"
                require_offsets(block, int(self.array(leads_into).shape[0]), name)
            return block

    def chunk_checksum(self, chunk: ChunkId) -> int:
        """The crc32c that the format stores at the end of a chunk; of a local file no more than its end is read.

        Raises:
            DamagedCacheError: the chunk is absent or of the wrong size, or, unless it is a local file, damaged.
        """
        name, index = chunk
        array = self.array(name)
        if not self.is_folder:  # an object store gives whole chunks, and an HDF5 file holds other checksums
            whole = np.zeros(array.chunks, array.dtype)
            part = self.read_chunk(name, index)
            whole[tuple(map(slice, part.shape))] = part
            return int(google_crc32c.value(whole.tobytes()))
        self._require_stored({name: array}, [index])
        descriptor = open_regular(self.folder / self.chunk_key(chunk))
        try:
            return int.from_bytes(os.pread(descriptor, CRC_BYTES, chunk_file_bytes(array) - CRC_BYTES), "little")
        finally:
            os.close(descriptor)

    def read_ragged(self, name: str, start: int = 0, stop: int | None = None) -> RaggedBytes:
        """Read texts `start` to `stop` of a ragged array.

        Raises:
            DamagedCacheError: a chunk is absent or damaged.
        """
        with self.checked(f"{name}/bytes", f"{name}/offsets"):
            return RaggedReader(self.root, name).texts(start, stop)

    @contextmanager
    def checked(self, *names: str, only: Collection[tuple[int, ...]] | None = None) -> Iterator[None]:
        """Check reads inside the block: zarr would read an absent chunk as zeros, and name no damaged one.

        Args:
            names: of the arrays that are read.
            only: the indices of the chunks that are read; by default all chunks.

        Raises:
            DamagedCacheError: a chunk is absent or damaged.
        """
        arrays = {name: self.array(name) for name in names}
        chunks = [(name, index) for name, a in arrays.items() for index in (chunk_indices(a) if only is None else only)]
        self._require_stored(arrays, only)
        try:
            yield
        except WrongOffsetsError as error:
            raise DamagedCacheError(Fault(f"{self.path}: {error}", self.remedy())) from error
        except MemoryError as error:
            size = sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays.values())
            raise CacheError(
                f"{self.path}: {', '.join(arrays)}: {size:,} bytes, more than the free memory: use a larger machine"
            ) from error
        except UNREADABLE_CHUNK as error:
            damaged = [chunk for chunk in chunks if self.chunk_problem(chunk)]
            keys = ", ".join(map(self.chunk_key, damaged)) or "(unknown)"
            message = f"{self.path}: damaged chunk {keys} ({error})"
            chunk = damaged[0] if damaged else None
            raise DamagedCacheError(Fault(message, self.remedy(damaged), chunk)) from error

    def stored_names(self, folder: str) -> list[str]:
        """The names in a folder of the store; none if there is no such folder."""
        return self._store.names(folder)

    def stored_chunks(self, folder: str) -> set[int]:
        """The last indices of the chunks in a folder of the store; none if there is no such folder.

        A listing, so one request at a URL: `stored_chunks("images/status/c")` tells which chunks a pass has finished.
        """
        return {int(name) for name in self.stored_names(folder) if name.isdigit()}

    def chunk_problem(self, chunk: ChunkId) -> str | None:
        """What is wrong with a chunk: absent although it must be stored, or damaged; None if it is right."""
        name, index = chunk
        array = self.array(name)
        if problem := self._file_problem(array, index):
            return problem if problem == ABSENT else f"damaged ({problem})"
        try:
            array.blocks[index]
        except AbsentObjectError:
            return None if self._may_be_unwritten(array, index) else ABSENT
        except UNREADABLE_CHUNK as error:
            return f"damaged ({error})"
        return None

    def _require_stored(self, arrays: Mapping[str, zarr.Array[Any]], only: Collection[tuple[int, ...]] | None) -> None:
        """Raise unless the chunks of arrays that are to be read are stored, in their size, as far as a look tells."""
        absent: list[ChunkId] = []
        for name, array in arrays.items():
            sizes = self._listed_sizes(array) if only is None else None
            for index in chunk_indices(array) if only is None else only:
                problem = self._file_problem(array, index, sizes)
                if problem == ABSENT:
                    absent.append((name, index))
                elif problem:
                    chunk = (name, index)
                    message = f"{self.path}: damaged chunk {self.chunk_key(chunk)} ({problem})"
                    raise DamagedCacheError(Fault(message, self.remedy([chunk]), chunk))
                if len(absent) == MAX_NAMED:
                    break
        if absent:
            message = f"{self.path}: {self.chunk_key(absent[0])} is absent"
            raise DamagedCacheError(Fault(message, self.remedy(absent), absent[0]))

    def _listed_sizes(self, array: zarr.Array[Any]) -> Mapping[str, int] | None:
        """Sizes of all chunks of an array by key, where a listing is worth it; None where each read finds its own."""
        if isinstance(self._store, DurableLocalStore) or array.nchunks <= FEW_CHUNKS:
            return None
        return self._store.chunk_sizes(array.path)

    def _file_problem(
        self, array: zarr.Array[Any], index: tuple[int, ...], sizes: Mapping[str, int] | None = None
    ) -> str | None:
        """What the size of a chunk tells: `ABSENT` although it must be stored, or another size; None if it is right."""
        key = chunk_key(array, index)
        if sizes is not None:
            size = sizes.get(key)
        elif self.is_folder:
            try:
                state = (self.folder / key).stat()
            except OSError:
                size = None
            else:
                if not stat.S_ISREG(state.st_mode):
                    return "not a regular file"
                size = state.st_size
        else:
            return None  # to ask would cost a request a chunk, and the read itself finds it
        if size is None:
            return None if self._may_be_unwritten(array, index) else ABSENT
        expected = chunk_file_bytes(array)
        return None if size == expected else f"{size:,} bytes, expected {expected:,}"

    def _may_be_unwritten(self, array: zarr.Array[Any], index: tuple[int, ...]) -> bool:
        """Whether a pass may have a chunk still to write: before sealing, or one of further views."""
        if self.info.state != "sealed":
            return array.path in (*EMBEDDED_ARRAYS, *TEXT_TARGET_ARRAYS)
        return array.path in (EMB, NORM) and index[0] >= self.info.num_views

    def chunk_key(self, chunk: ChunkId) -> str:
        """The key of a chunk in the store, e.g. `images/emb/c/0/3/0`."""
        name, index = chunk
        return chunk_key(self.array(name), index)

    def remedy(self, chunks: Sequence[ChunkId] = ()) -> str:
        """What the user can do about lost chunks; without any, about something lost that no pass makes again."""
        remedy = CONVERT_AGAIN if self.is_hdf5 else repair_instructions(chunks, self.info)
        return f"{UPLOAD_AGAIN}, or {remedy}" if isinstance(self.path, Url) else remedy

    def invalidate(self, chunks: Iterable[ChunkId]) -> list[str]:
        """Have the next pass embed again what chunks hold. Chunks that no pass makes are left alone.

        The cache must be open for writing. It is then no longer sealed, unless only views under way were lost.

        Returns:
            The chunks that were deleted, so that the next pass takes their rows for missing.
        """
        remakable = [chunk for chunk in chunks if chunk_to_delete(*chunk)]
        deleted = chunks_to_delete(remakable)
        if any(not self._may_be_unwritten(self.array(name), index) for name, index in remakable):
            self.write_info(replace(self.info, state="planned"))
        for key in deleted:
            self.store.delete_file(key)
        return deleted


def parent_groups(names: Iterable[str]) -> list[str]:
    """The groups that arrays lie in, parents first.

    >>> parent_groups(["images/emb", "images/key/bytes"])
    ['images', 'images/key']
    """
    return sorted(
        {"/".join(parts[:end]) for parts in (name.split("/") for name in names) for end in range(1, len(parts))}
    )


def _require_layout(array: zarr.Array[Any], info: CacheInfo, sets: Sequence[CaptionSetInfo]) -> None:
    """Raise unless an array has the type, shape and chunks that the metadata ask for.

    Raises:
        WrongLayoutError: it has others.
    """
    expected = layouts(info)
    for each in sets:
        expected |= set_layouts(each)
    if array.path not in expected:
        return
    dtype, shape, chunks = expected[array.path]
    if array.dtype != dtype:
        raise WrongLayoutError(f"type {array.dtype}, expected {dtype}")
    if array.path in (EMB, NORM):
        shape = (max(info.num_views, *array.shape[:1]), *shape[1:])
    for what, found, right in (("shape", array.shape, shape), ("chunks", array.chunks, chunks)):
        right = (
            tuple(f if r is None else r for f, r in zip(found, right, strict=True))
            if len(found) == len(right)
            else right
        )
        if found != right:
            raise WrongLayoutError(f"{what} {found}, expected {right} by the metadata of the cache")


def chunk_indices(array: zarr.Array[Any]) -> list[tuple[int, ...]]:
    """The indices of an array's chunks."""
    return list(np.ndindex(*array.cdata_shape))


def chunk_key(array: zarr.Array[Any], index: tuple[int, ...]) -> str:
    """The key of a chunk in the store."""
    return f"{array.path}/{array.metadata.encode_chunk_key(index)}"
