"""Zarr store in an object store, through fsspec, with errors that say what to do."""

import asyncio
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from ..errors import AbsentObjectError
from ..format import CAPTION_IMAGE, EMBEDDED_ARRAYS, FILE, KEY, LANGUAGE, LOCATOR, TEACHER_EMB, TEACHER_TEXT, TEXT
from ..location import HTTP, Url
from ..store_errors import NOT_FOUND, explain_scheme_error, explain_store_error
from .encoding import ChunkLimits, slice_bytes
from .local import ZARR_JSON

WEB = tuple(f"{scheme}://" for scheme in HTTP)
UPLOAD_AGAIN = "upload it again from the cache that this is a copy of"
# Objects of at most 16 MB. Captions are read in parts, and each part would fetch its chunk again.
NUM_RECENT = 8
FIXED = tuple(
    f"{name}/" for name in (KEY, LOCATOR, FILE, TEXT, CAPTION_IMAGE, LANGUAGE, TEACHER_TEXT)
)  # a pass does not change these


class RemoteStore(FsspecStore):
    """Zarr store of the objects below a URL.

    A PUT is atomic, so an object is complete or absent, like a file of a `DurableLocalStore`.
    zarr reads an absent chunk as zeros. A sealed cache has all of its chunks, so an absent one is an error; the read
    itself finds it, without another request beforehand.

    Attributes:
        url: URL as the user gave it.
        limits: most bytes to read of each object.
        may_be_absent: arrays with chunks that a pass has yet to write.
    """

    url: Url
    limits: ChunkLimits
    may_be_absent: tuple[str, ...] = ()
    _recent: OrderedDict[str, Buffer]

    @classmethod
    def at(cls, url: Url, *, read_only: bool = True) -> "RemoteStore":
        """The store at a URL, with credentials and endpoint from the environment. Reads nothing yet.

        Raises:
            CacheError: no installed package reads such URLs.
        """
        with explain_scheme_error(url):
            opened = FsspecStore.from_url(url)
        store = cls(opened.fs, read_only=read_only, path=opened.path.rstrip("/"), allowed_exceptions=())
        store.url, store.limits, store._recent = url, ChunkLimits(), OrderedDict()
        return store

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Buffer | None:
        """Read one object; None if it is absent and zarr can do without it.

        Raises:
            AbsentObjectError: a chunk or the whole cache is absent.
            OSError: the object is larger than declared.
            CacheError: the store refuses access or cannot be reached.
        """
        if byte_range is None and key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        try:
            content = await self._fetch(key)
        except NOT_FOUND as error:
            if key == ZARR_JSON and self.read_only:
                raise AbsentObjectError(
                    f"{self.url}: no such cache ({error}): check the URL, or upload a sealed cache to it"
                ) from error
            if "/c/" in key and not key.startswith(self.may_be_absent):
                raise AbsentObjectError(f"{self.url}: {key} is absent: {UPLOAD_AGAIN}") from error
            return None
        value = prototype.buffer.from_bytes(slice_bytes(content, byte_range))
        if byte_range is None and self._is_cacheable(key):
            self._recent[key] = value
            if len(self._recent) > NUM_RECENT:
                self._recent.popitem(last=False)
        return value

    def _is_cacheable(self, key: str) -> bool:
        """Whether to keep an object in memory for the next read; a writer keeps only what the plan has fixed."""
        if not self.read_only:
            return key.startswith(FIXED)
        return not key.startswith((*EMBEDDED_ARRAYS, TEACHER_EMB))

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        """Write one object atomically.

        Raises:
            CacheError: the store refuses access or cannot be reached.
        """
        self._check_writable()
        self._recent.pop(key, None)
        with explain_store_error(self.url, key, "written"):
            await super().set(key, value, byte_range)

    async def delete(self, key: str) -> None:
        """Delete one object, if it exists. zarr's own method would read brackets in the name as a pattern."""
        self._check_writable()
        self._recent.pop(key, None)
        with explain_store_error(self.url, key, "deleted"), suppress(*NOT_FOUND):
            await self.fs._rm_file(f"{self.path}/{key}")

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a folder, the `zarr.json` of the cache last."""
        self._check_writable()
        keys = await self._keys_below(prefix)
        await asyncio.gather(*(self.delete(key) for key in keys if key != ZARR_JSON))
        if ZARR_JSON in keys:
            await self.delete(ZARR_JSON)

    def names(self, folder: str) -> list[str]:
        """Names directly in a folder, listed anew; empty if the folder is absent."""

        async def list_names() -> list[str]:
            self.fs.invalidate_cache()  # other processes write too
            with explain_store_error(self.url, folder):
                return [name async for name in self.list_dir(folder)]

        return [name for name in sync(list_names()) if name]  # "" stands for an empty folder, as made in a browser

    def read(self, key: str) -> bytes | None:
        """Read a small object; None if it is absent.

        Raises:
            OSError: it is too large.
        """
        try:
            return sync(self._fetch(key))
        except NOT_FOUND:
            return None

    async def _fetch(self, key: str) -> bytes:
        """Read an object, never more than one byte beyond what it may have, whatever the server sends.

        Raises:
            OSError: it has more.
        """
        limit, path = self.limits.max_bytes(key), f"{self.path}/{key}"
        with explain_store_error(self.url, key):
            if self.url.startswith(WEB):  # a web server need not heed a range
                content = await _read_web(self.fs, path, limit + 1)
            else:
                try:
                    content = bytes(await self.fs._cat_file(path, start=0, end=limit + 1))
                except OSError as error:
                    if "not satisfiable" not in str(error):
                        raise
                    content = b""  # how S3 answers a range of an empty object
        if len(content) > limit:
            raise OSError(f"more than {limit:,} bytes")
        return content

    def chunk_sizes(self, name: str) -> dict[str, int] | None:
        """Sizes of the stored chunks of an array, by key, from a listing; None on a web server, which does not list."""
        if self.url.is_web:
            return None

        async def list_sizes() -> dict[str, int]:
            with explain_store_error(self.url, name):
                found = await self.fs._find(f"{self.path}/{name}/c", detail=True)
            return {path.removeprefix(f"{self.path}/"): int(info["size"]) for path, info in found.items()}

        self.fs.invalidate_cache()
        return sync(list_sizes())

    def write(self, key: str, data: bytes) -> None:
        """Write a small object."""
        sync(self.set(key, default_buffer_prototype().buffer.from_bytes(data)))

    def keys_below(self, folder: str) -> list[str]:
        """Keys of all objects below a folder, relative to the store."""
        return sync(self._keys_below(f"{folder}/"))

    def delete_below(self, folder: str) -> None:
        """Delete all objects below a folder."""
        sync(self.delete_dir(folder))

    def delete_file(self, key: str) -> None:
        """Delete a small object, if it exists."""
        sync(self.delete(key))

    def empty(self, *, for_good: bool = False) -> None:
        """Delete what an interrupted plan left, `zarr.json` last. `for_good` has no effect: a store has no folders."""
        sync(self.delete_dir(""))

    def sweep(self, *, keep: str | None = None) -> None:
        """Do nothing: a killed writer leaves no partial object."""

    def lock(self, *, shared: bool = False) -> AbstractContextManager[bool]:
        """Lock nothing, and yield False: a store has no locks, and writers of one cache write the same bytes."""
        return nullcontext(False)

    def lock_shard(self, index: int, num: int) -> AbstractContextManager[bool]:
        """Lock nothing, as `lock`: of two processes with one shard, both write the same bytes."""
        return nullcontext(False)

    async def _keys_below(self, folder: str) -> list[str]:
        self.fs.invalidate_cache()
        with explain_store_error(self.url, folder):
            try:
                paths = await self.fs._find(f"{self.path}/{folder}".rstrip("/"))
            except NOT_FOUND:
                return []
        return [path.removeprefix(f"{self.path}/") for path in paths if path.startswith(f"{self.path}/")]


async def _read_web(fs: Any, url: str, num_bytes: int) -> bytes:
    """The first bytes of a file on a web server."""
    session = await fs.set_session()
    async with session.get(fs.encode_url(url), **fs.kwargs) as response:
        fs._raise_not_found_for_status(response, url)
        content = bytearray()
        while len(content) < num_bytes and (part := await response.content.read(num_bytes - len(content))):
            content += part
        return bytes(content)
