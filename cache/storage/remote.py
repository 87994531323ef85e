"""Zarr store in an object store through fsspec, with errors that say what to do."""

import asyncio
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from ..errors import AbsentObjectError
from ..format import CAPTION_IMAGE, EMBEDDED_ARRAYS, FILE, KEY, LANGUAGE, LOCATOR, TEACHER_EMB, TEACHER_TEXT, TEXT
from ..location import Url
from .local import ZARR_JSON
from .urls import NOT_THERE, explain_store_error, known_scheme

UPLOAD_AGAIN = "upload it again from the cache that this is a copy of"
NUM_RECENT = 8  # objects of at most 16 MB: captions are read in parts, each of which would fetch its chunk anew
FIXED = tuple(
    f"{name}/" for name in (KEY, LOCATOR, FILE, TEXT, CAPTION_IMAGE, LANGUAGE, TEACHER_TEXT)
)  # no pass changes these


class RemoteStore(FsspecStore):
    """The objects below a URL. A PUT is atomic, so an object is whole or absent, as a file of a `DurableLocalStore` is.

    zarr takes an absent chunk for zeros. In a sealed cache each one is there, so an absent one is an error, which the
    read itself finds: no request asks beforehand.

    Attributes:
        url: as the user gave it.
        may_be_absent: arrays whose chunks a pass has still to write.
    """

    url: Url
    may_be_absent: tuple[str, ...] = ()
    _recent: OrderedDict[str, Buffer]

    @classmethod
    def at(cls, url: Url, *, read_only: bool = True) -> "RemoteStore":
        """The store at a URL, with the credentials and the endpoint of the environment. Nothing is read yet.

        Raises:
            CacheError: nothing that is installed reads such URLs.
        """
        with known_scheme(url):
            opened = FsspecStore.from_url(url)
        store = cls(opened.fs, read_only=read_only, path=opened.path.rstrip("/"), allowed_exceptions=())
        store.url, store._recent = url, OrderedDict()
        return store

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Buffer | None:
        """One object, None where zarr can go without it.

        Raises:
            AbsentObjectError: a chunk is absent, or the whole cache.
            CacheError: the store refuses, or cannot be reached.
        """
        if byte_range is None and key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        try:
            with explain_store_error(self.url, key):
                value = await super().get(key, prototype, byte_range)
        except NOT_THERE as error:
            if key == ZARR_JSON and self.read_only:
                raise AbsentObjectError(
                    f"{self.url}: no such cache ({error}): check the URL, or upload a sealed cache to it"
                ) from error
            if "/c/" in key and not key.startswith(self.may_be_absent):
                raise AbsentObjectError(f"{self.url}: {key} is absent: {UPLOAD_AGAIN}") from error
            return None
        if value is not None and byte_range is None and self._keeps(key):
            self._recent[key] = value
            if len(self._recent) > NUM_RECENT:
                self._recent.popitem(last=False)
        return value

    def _keeps(self, key: str) -> bool:
        """Whether an object may be held back for the next reader: a writer holds only what a plan has fixed."""
        if not self.read_only:
            return key.startswith(FIXED)
        return not key.startswith((*EMBEDDED_ARRAYS, TEACHER_EMB))

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        """Put one object, whole or not at all.

        Raises:
            CacheError: the store refuses, or cannot be reached.
        """
        self._check_writable()
        self._recent.pop(key, None)
        with explain_store_error(self.url, key, "written"):
            await super().set(key, value, byte_range)

    async def delete(self, key: str) -> None:
        """Delete one object, if it is there. zarr's own way would take brackets in its name for a pattern."""
        self._check_writable()
        self._recent.pop(key, None)
        with explain_store_error(self.url, key, "deleted"), suppress(*NOT_THERE):
            await self.fs._rm_file(f"{self.path}/{key}")

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a folder, the mark of the cache last."""
        self._check_writable()
        found = await self._keys_below(prefix)
        await asyncio.gather(*(self.delete(key) for key in found if key != ZARR_JSON))
        if ZARR_JSON in found:
            await self.delete(ZARR_JSON)

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder now; nothing if there is none."""

        async def listed() -> list[str]:
            self.fs.invalidate_cache()  # others write too
            with explain_store_error(self.url, folder):
                return [name async for name in self.list_dir(folder)]

        return [name for name in sync(listed()) if name]  # "" marks an empty folder, as made in a browser

    def read(self, key: str) -> bytes | None:
        """A small object, None if there is none."""

        async def fetched() -> bytes | None:
            with explain_store_error(self.url, key):
                return bytes(await self.fs._cat_file(f"{self.path}/{key}"))

        try:
            return sync(fetched())
        except NOT_THERE:
            return None

    def write(self, key: str, data: bytes) -> None:
        """Put a small object."""
        sync(self.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def keys_below(self, folder: str) -> list[str]:
        """All objects below a folder, from the top."""
        return sync(self._keys_below(f"{folder}/"))

    def delete_below(self, folder: str) -> None:
        """Delete all objects below a folder."""
        sync(self.delete_dir(folder))

    def delete_file(self, key: str) -> None:
        """Delete a small object, if it is there."""
        sync(self.delete(key))

    def empty(self, *, for_good: bool = False) -> None:
        """Delete what an interrupted plan left, its mark last. There is no folder that could stay or go."""
        sync(self.delete_dir(""))

    def sweep(self, *, keep: str | None = None) -> None:
        """Nothing: a killed writer leaves no half of an object."""

    def held(self, *, shared: bool = False) -> AbstractContextManager[bool]:
        """Nobody is kept out of a store: writers of one cache write the same bytes. Yields that there is no lock."""
        return nullcontext(False)

    async def _keys_below(self, folder: str) -> list[str]:
        self.fs.invalidate_cache()
        with explain_store_error(self.url, folder):
            try:
                found = await self.fs._find(f"{self.path}/{folder}".rstrip("/"))
            except NOT_THERE:
                return []
        return [path.removeprefix(f"{self.path}/") for path in found if path.startswith(f"{self.path}/")]
