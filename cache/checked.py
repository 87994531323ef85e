"""The Zarr group of a cache, read so that a chunk that is absent or damaged is named, with what to do about it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from .errors import CacheError
from .format import EMB, EMBEDDED_ARRAYS, NORM, STATUS, TAUGHT_ARRAYS, TEACHER_EMB, TEACHER_STATUS, CacheInfo
from .location import Location, Url, to_location
from .ragged import UNREADABLE_CHUNK, UNREADABLE_METADATA, open_array
from .stores import UPLOAD_AGAIN, AbsentObjectError, RemoteStore, open_store

AGAIN = "run its `clipglot cache` command again"
REMAKE = f"delete the cache and {AGAIN}"


class CheckedGroup:
    """A cache's metadata and arrays, in a local folder or at a URL.

    Attributes:
        path: where it lies.
        root: the group.
        info: its metadata.
    """

    def __init__(self, path: Location | str, *, read_only: bool = True) -> None:
        """Open a cache, in a local folder or at a URL.

        Raises:
            CacheError: nothing there, no cache, a format that this version does not read, or a store that refuses.
        """
        self.path = to_location(path)
        self._store = open_store(self.path, read_only=read_only)
        try:
            self.root = zarr.open_group(self._store, mode="r" if read_only else "r+", zarr_format=3)
            attributes = dict(self.root.attrs)
        except UNREADABLE_METADATA as error:
            raise CacheError(f"{self.path} is no cache, or its zarr.json is damaged ({error})") from error
        self.info = CacheInfo.from_attributes(attributes, str(self.path))
        self._arrays: dict[str, zarr.Array[Any]] = {}
        if isinstance(self._store, RemoteStore) and self.info.state != "sealed":
            self._store.may_be_absent = (*EMBEDDED_ARRAYS, *TAUGHT_ARRAYS)

    @property
    def folder(self) -> Path:
        """The local folder that the cache lies in.

        Raises:
            CacheError: it lies at a URL.
        """
        if isinstance(self.path, Url):
            raise CacheError(
                f"{self.path}: rows can be mapped only from a cache on a local disk: copy it there, or train with "
                "--embeddings chunks or device"
            )
        return self.path

    def forget_arrays(self) -> None:
        """Open arrays anew when they are next read, because they were replaced."""
        self._arrays.clear()

    def array(self, name: str) -> zarr.Array[Any]:
        """One of the cache's arrays.

        Raises:
            CacheError: its metadata is absent or damaged.
        """
        try:
            if name not in self._arrays:
                self._arrays[name] = open_array(self.root, name)
            return self._arrays[name]
        except UNREADABLE_METADATA as error:
            raise CacheError(
                f"{self.path}: {name}/zarr.json is absent or damaged ({error}): {self._remedy([])}"
            ) from error

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
            raise CacheError(f"{self.path}: {chunk_name(arrays[name], index)} is absent: {self._remedy(absent)}")
        try:
            yield
        except UNREADABLE_CHUNK as error:
            faults = [(n, i) for n, i in chunks if self._chunk_fault(arrays[n], i)]
            damaged = ", ".join(chunk_name(arrays[name], index) for name, index in faults) or "(unknown)"
            raise CacheError(f"{self.path}: damaged chunk {damaged} ({error}): {self._remedy(faults)}") from error

    def stored_numbers(self, folder: str) -> set[int]:
        """The last numbers of the chunks that lie directly in a folder; none where there is no such folder."""
        return {int(name) for name in self._store.names(folder) if name.isdigit()}

    def _pending(self, array: zarr.Array[Any], index: tuple[int, ...]) -> bool:
        """Whether a pass may still have to write a chunk: its own before sealing, then those of views to come."""
        if self.info.state != "sealed":
            return array.path in (*EMBEDDED_ARRAYS, *TAUGHT_ARRAYS)
        return array.path in (EMB, NORM) and index[0] >= self.info.num_views

    def _chunk_absent(self, array: zarr.Array[Any], index: tuple[int, ...]) -> bool:
        """Whether a chunk that must be there is not on disk."""
        if isinstance(self.path, Url):
            return False  # to ask would be a request for each; reading it tells
        return not self._pending(array, index) and not (self.path / chunk_name(array, index)).is_file()

    def _chunk_fault(self, array: zarr.Array[Any], index: tuple[int, ...]) -> str | None:
        """What is wrong with a chunk: absent though it must not be, a checksum that does not match, or None."""
        if self._chunk_absent(array, index):
            return "absent"
        try:
            array.blocks[index]
        except AbsentObjectError:
            return None if self._pending(array, index) else "absent"
        except UNREADABLE_CHUNK as error:
            return f"damaged ({error})"
        return None

    def _remedy(self, chunks: list[tuple[str, tuple[int, ...]]]) -> str:
        """What to do about lost chunks, given as array and index: those of a pass can be made again alone.

        A chunk without status is not done, and a further view of one not without its norm.
        """
        if isinstance(self.path, Url):
            return UPLOAD_AGAIN
        if chunks and all(name in TAUGHT_ARRAYS for name, _ in chunks):
            taught = {f"{TEACHER_STATUS}/c/{index[1] if name == TEACHER_EMB else index[0]}" for name, index in chunks}
            return f"delete {' '.join(sorted(taught))} and {AGAIN} to embed these captions anew"
        if not chunks or any(name not in EMBEDDED_ARRAYS for name, _ in chunks):
            return REMAKE
        files = sorted(
            {
                f"{NORM}/c/{index[0]}/{index[1]}"
                if name in (EMB, NORM) and index[0]
                else f"{STATUS}/c/{index[0] if name == STATUS else index[1]}"
                for name, index in chunks
            }
        )
        return f"delete {' '.join(files)} and {AGAIN} to embed these rows anew"


def chunk_indices(array: zarr.Array[Any]) -> list[tuple[int, ...]]:
    """The indices of an array's chunks."""
    return list(np.ndindex(*array.cdata_shape))


def chunk_name(array: zarr.Array[Any], index: tuple[int, ...]) -> str:
    """The key of a chunk, from the root of the group."""
    return f"{array.path}/{array.metadata.encode_chunk_key(index)}"
