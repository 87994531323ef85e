"""The Zarr group of a cache, read so that a chunk that is absent or damaged is named, with what to do about it."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import AbsentObjectError, CacheError
from ..format import EMB, EMBEDDED_ARRAYS, NORM, STAGED, TAUGHT_ARRAYS, CacheInfo
from ..location import Location, Url, to_location
from ..metadata import RESTORE, read_metadata, write_metadata
from ..storage.atomic import PARTIAL
from ..storage.hdf5 import CONVERT_AGAIN, Hdf5Store
from ..storage.local import ZARR_JSON, DurableLocalStore
from ..storage.open import CacheStore, open_store
from ..storage.ragged import UNREADABLE_CHUNK, UNREADABLE_METADATA, open_array
from ..storage.remote import UPLOAD_AGAIN, RemoteStore
from .repair import chunk_to_delete, is_of_tokens, remake


class CheckedArrays:
    """A cache's metadata and arrays, in a local folder or at a URL.

    Attributes:
        path: where it lies.
        root: the group.
        info: its metadata, as they were when it was opened.
    """

    root: zarr.Group
    info: CacheInfo

    def __init__(self, path: Location | str, *, read_only: bool = True) -> None:
        """Open a cache, in a local folder or at a URL.

        Raises:
            CacheError: nothing there, no cache, a format that this version does not read, or a store that refuses.
        """
        self.path = to_location(path)
        self._store = open_store(self.path, read_only=read_only)
        self.refresh()

    def refresh(self) -> None:
        """Read the metadata, again if another process may have changed them.

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
        self.info = read_metadata(attributes, str(self.path), restore)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        if isinstance(self._store, RemoteStore):
            self._store.may_be_absent = () if self.info.state == "sealed" else (*EMBEDDED_ARRAYS, *TAUGHT_ARRAYS)

    @property
    def is_folder(self) -> bool:
        """Whether its chunks are files of a local folder, which can be mapped."""
        return isinstance(self._store, DurableLocalStore)

    @property
    def store(self) -> CacheStore:
        """What the cache's bytes lie in, where they can be written."""
        assert not isinstance(self._store, Hdf5Store)
        return self._store

    @property
    def is_one_file(self) -> bool:
        """Whether it is an HDF5 file, which is only read."""
        return isinstance(self._store, Hdf5Store)

    @property
    def folder(self) -> Path:
        """The local folder that the cache lies in.

        Raises:
            CacheError: it lies at a URL or in an HDF5 file.
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
        """Whether the cache has an array or ragged array, whatever became of it; an older one has what is there."""
        if self.info.arrays is not None:
            return not {name, f"{name}/bytes"}.isdisjoint(self.info.arrays)
        try:
            return name in self.root
        except UNREADABLE_METADATA:
            return True  # who reads it is told

    def array(self, name: str) -> zarr.Array[Any]:
        """One of the cache's arrays.

        Raises:
            CacheError: its metadata is absent or damaged.
        """
        if name not in self._arrays:
            self._arrays[name] = self.array_now(name)
        return self._arrays[name]

    def array_now(self, name: str) -> zarr.Array[Any]:
        """The same, with its metadata read again: there may be room for more by now.

        Raises:
            CacheError: its metadata is absent or damaged.
        """
        with self._described(name):
            return open_array(self.root, name)

    def require_group(self, name: str) -> None:
        """Raise unless there is a group of that name.

        Raises:
            CacheError: its metadata is absent or damaged.
        """
        with self._described(name):
            if not isinstance(self.root[name], zarr.Group):
                raise TypeError(f"{name} is an array, expected a group")

    def _is_group(self, name: str) -> bool:
        with self._described(name):
            return isinstance(self.root[name], zarr.Group)

    @contextmanager
    def _described(self, name: str) -> Iterator[None]:
        """Read the metadata of an array or group inside the block: what zarr raises is explained."""
        try:
            yield
        except UNREADABLE_METADATA as error:
            remedy = self.remedy([(name, ())] if is_of_tokens(name) else [])
            raise CacheError(f"{self.path}: {name}/zarr.json is absent or damaged ({error}): {remedy}") from error

    def nodes(self) -> tuple[list[str], list[str]]:
        """The names of all groups and of all arrays, whatever they are; not what a killed writer left.

        Raises:
            CacheError: an array's metadata is damaged.
        """
        groups: list[str] = []
        arrays: list[str] = []

        def visit(folder: str, names: list[str]) -> None:
            for name in sorted(names):
                path = f"{folder}/{name}".lstrip("/")
                is_passing = path == STAGED or name == ZARR_JSON or name.endswith(PARTIAL)
                inside = [] if is_passing else self._store.names(path)
                if ZARR_JSON not in inside:
                    continue
                if self._is_group(path):
                    groups.append(path)
                    visit(path, inside)
                else:
                    arrays.append(path)

        visit("", self._store.names(""))
        return groups, arrays

    def read_chunk(self, name: str, index: tuple[int, ...]) -> NDArray[Any]:
        """One chunk of an array, less what lies beyond the array's edge.

        Raises:
            CacheError: it is absent or damaged, with what to do.
        """
        with self._whole(name, only=[index]):
            return np.asarray(self.array(name).blocks[index])

    def _read(
        self, name: str, selection: tuple[Any, ...], only: Collection[tuple[int, ...]] | None = None
    ) -> NDArray[Any]:
        with self._whole(name, only=only):
            return np.asarray(self.array(name)[selection])

    @contextmanager
    def _whole(self, *names: str, only: Collection[tuple[int, ...]] | None = None) -> Iterator[None]:
        """Read arrays inside the block: an absent chunk (zarr would make it zeros) or a damaged one is named.

        Args:
            names: of the arrays.
            only: the indices of the chunks that are read; by default all.

        Raises:
            CacheError: with the chunk's file and what to do.
        """
        arrays = {name: self.array(name) for name in names}
        chunks = [(n, i) for n, a in arrays.items() for i in (chunk_indices(a) if only is None else only)]
        absent = [(n, i) for n, i in chunks if self._chunk_absent(arrays[n], i)]
        if absent:
            name, index = absent[0]
            raise CacheError(f"{self.path}: {chunk_name(arrays[name], index)} is absent: {self.remedy(absent)}")
        try:
            yield
        except UNREADABLE_CHUNK as error:
            faults = [(n, i) for n, i in chunks if self.chunk_fault(n, i)]
            damaged = ", ".join(chunk_name(arrays[name], index) for name, index in faults) or "(unknown)"
            raise CacheError(f"{self.path}: damaged chunk {damaged} ({error}): {self.remedy(faults)}") from error

    def stored_names(self, folder: str) -> list[str]:
        """What lies directly in a folder; nothing where there is none."""
        return self._store.names(folder)

    def stored_numbers(self, folder: str) -> set[int]:
        """The last numbers of the chunks that lie directly in a folder; none where there is no such folder."""
        return {int(name) for name in self.stored_names(folder) if name.isdigit()}

    def _pending(self, array: zarr.Array[Any], index: tuple[int, ...]) -> bool:
        """Whether a pass may still have to write a chunk: its own before sealing, then those of views to come."""
        if self.info.state != "sealed":
            return array.path in (*EMBEDDED_ARRAYS, *TAUGHT_ARRAYS)
        return array.path in (EMB, NORM) and index[0] >= self.info.num_views

    def _chunk_absent(self, array: zarr.Array[Any], index: tuple[int, ...]) -> bool:
        """Whether a chunk that must be there is not on disk."""
        if not self.is_folder:
            return False  # to ask would be a request for each; reading it tells
        return not self._pending(array, index) and not (self.folder / chunk_name(array, index)).is_file()

    def chunk_fault(self, name: str, index: tuple[int, ...]) -> str | None:
        """What is wrong with a chunk: absent though it must not be, a checksum that does not match, or None."""
        array = self.array(name)
        if self._chunk_absent(array, index):
            return "absent"
        try:
            array.blocks[index]
        except AbsentObjectError:
            return None if self._pending(array, index) else "absent"
        except UNREADABLE_CHUNK as error:
            return f"damaged ({error})"
        return None

    def chunk_file(self, chunk: tuple[str, tuple[int, ...]]) -> str:
        """The key of a chunk, given as array and index."""
        return chunk_name(self.array(chunk[0]), chunk[1])

    def remedy(self, chunks: list[tuple[str, tuple[int, ...]]]) -> str:
        """What to do about lost chunks, given as array and index: those of a pass can be made again alone."""
        remedy = CONVERT_AGAIN if self.is_one_file else remake(chunks, self.info)
        return f"{UPLOAD_AGAIN}, or {remedy}" if isinstance(self.path, Url) else remedy

    def mark_lost(self, chunks: list[tuple[str, tuple[int, ...]]]) -> list[str]:
        """Have the next pass embed again what chunks hold, given as array and index; others are left alone.

        The cache, open for writing, is then no longer sealed, unless only views that are under way were lost.

        Returns:
            The chunks that were deleted, so that what they stand for counts as not done.
        """
        assert not isinstance(self._store, Hdf5Store)  # never open for writing
        marks = {mark: chunk for chunk in chunks if (mark := chunk_to_delete(*chunk))}
        if any(not self._pending(self.array(name), index) for name, index in marks.values()):
            self.info = replace(self.info, state="planned")
            write_metadata(self.root, self.info)
        for mark in sorted(marks):
            self._store.delete_file(mark)
        return sorted(marks)


def groups_above(names: Iterable[str]) -> list[str]:
    """The groups that arrays lie in, parents first.

    >>> groups_above(["images/emb", "images/key/bytes"])
    ['images', 'images/key']
    """
    return sorted(
        {"/".join(parts[:end]) for parts in (name.split("/") for name in names) for end in range(1, len(parts))}
    )


def chunk_indices(array: zarr.Array[Any]) -> list[tuple[int, ...]]:
    """The indices of an array's chunks."""
    return list(np.ndindex(*array.cdata_shape))


def chunk_name(array: zarr.Array[Any], index: tuple[int, ...]) -> str:
    """The key of a chunk, from the root of the group."""
    return f"{array.path}/{array.metadata.encode_chunk_key(index)}"
