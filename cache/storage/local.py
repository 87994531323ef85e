"""Zarr store in a local folder, with atomic, durable writes and a lock for writers."""

import asyncio
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Condition
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from ..errors import CacheError
from .atomic import (
    PARTIAL,
    atomic_create,
    atomic_write,
    explain_os_error,
    lock_folder,
    require_folder_or_absent,
    sweep_partial,
)
from .encoding import ChunkLimits, slice_bytes
from .regular import read_regular

ZARR_JSON = "zarr.json"  # of the root group: a folder with this file is a cache
SHARDS = "workers"  # locks of shards; earlier versions kept heartbeats there


class DurableLocalStore(LocalStore):
    """zarr's LocalStore with an fsync before the rename, and with bounded reads of regular files alone.

    zarr 3.1 renames atomically but does not sync, so after a power cut a chunk can exist without its bytes.

    Attributes:
        limits: most bytes to read of each file.
    """

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.limits = ChunkLimits()
        self._writes = Condition()
        self._num_writes = 0
        self._refuses_writes = False

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read one file; None if it is absent.

        Raises:
            OSError: it is no regular file, or larger than declared.
        """
        return await asyncio.to_thread(self.get_sync, key, prototype=prototype, byte_range=byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """`get` for zarr's synchronous path (zarr >= 3.1.6)."""
        content = self._read(key, self.limits.max_bytes(key))
        if content is None:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(slice_bytes(content, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        """Write a chunk or metadata file atomically."""
        await asyncio.to_thread(self.set_sync, key, value)  # an fsync on zarr's event loop would block its reads

    def set_sync(self, key: str, value: Buffer) -> None:
        """`set` for zarr's synchronous path (zarr >= 3.1.6)."""
        self._put(key, value, atomic_write)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a metadata file atomically, unless it exists."""
        await asyncio.to_thread(self._put, key, value, atomic_create)

    def _put(self, key: str, value: Buffer, put: Callable[[Path, Any], object]) -> None:
        self._check_writable()
        path = self.root / key
        with self._counted_write(), explain_os_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            put(path, value.as_buffer_like())

    @contextmanager
    def _counted_write(self) -> Iterator[None]:
        with self._writes:
            if self._refuses_writes:
                raise CacheError(f"{self.root} is written no more")
            self._num_writes += 1
        try:
            yield
        finally:
            with self._writes:
                self._num_writes -= 1
                self._writes.notify_all()

    @contextmanager
    def written_by_block(self) -> Iterator[None]:
        """Refuse chunks and metadata once the block ends, after those under way.

        When one chunk of an assignment fails, zarr raises at once and goes on writing the others in its threads. They
        would create a folder again that the caller deletes.
        """
        try:
            yield
        finally:
            with self._writes:
                self._refuses_writes = True
                self._writes.wait_for(lambda: self._num_writes == 0)

    def names(self, folder: str) -> list[str]:
        """Names directly in a folder; empty if the folder is absent."""
        require_folder_or_absent(self.root)
        try:
            return [entry.name for entry in (self.root / folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, key: str) -> bytes | None:
        """Read a small file; None if it is absent.

        Raises:
            OSError: it is no regular file, or too large.
        """
        return self._read(key, self.limits.max_bytes(key))

    def _read(self, key: str, max_bytes: int) -> bytes | None:
        try:
            return read_regular(self.root / key, max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, key: str, data: bytes) -> None:
        """Write a small file atomically."""
        path = self.root / key
        with explain_os_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)

    def keys_below(self, folder: str) -> list[str]:
        """Keys of all files below a folder, relative to the store, without partial files of killed writers."""
        paths = (path for path in (self.root / folder).rglob("*") if path.is_file() and path.suffix != PARTIAL)
        return sorted(path.relative_to(self.root).as_posix() for path in paths)

    def delete_below(self, folder: str) -> None:
        """Delete a folder, if it exists. Files that other processes add meanwhile stay."""
        top = self.root / folder
        if not top.is_dir():
            return  # on a read-only disk, an attempt would be an error
        with explain_os_error(top):
            if top.is_symlink() or top.resolve() != self.root.resolve() / folder:
                return  # what a link leads to is not the cache's
            for path, folders, files in os.walk(top, topdown=False):
                for name in files:
                    Path(path, name).unlink(missing_ok=True)
                for name in folders:
                    inside = Path(path, name)
                    if inside.is_symlink():
                        inside.unlink(missing_ok=True)
                    else:
                        _rmdir_if_empty(inside)
            _rmdir_if_empty(self.root / folder)

    def delete_file(self, key: str) -> None:
        """Delete a small file, if it exists, and its folder if that is then empty."""
        path = self.root / key
        with explain_os_error(path):
            path.unlink(missing_ok=True)
            _rmdir_if_empty(path.parent)

    def empty(self, *, for_good: bool = False) -> None:
        """Delete what an interrupted plan left, `zarr.json` last, so that a kill leaves an interrupted plan again.

        Args:
            for_good: delete the folder itself, too.
        """
        if not self.root.exists():
            return
        with explain_os_error(self.root):
            for entry in sorted(self.root.iterdir(), key=lambda entry: entry.name == ZARR_JSON):
                if entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            if for_good:
                self.root.rmdir()

    def sweep(self, *, keep: str | None = None) -> None:
        """Delete partial files of killed writers.

        Args:
            keep: folder to skip, the only one where other processes may be writing.
        """
        sweep_partial(self.root, keep=keep)

    def lock(self, *, shared: bool = False) -> AbstractContextManager[bool]:
        """Lock the folder for one writer or for several that share it; see `lock_folder`."""
        return lock_folder(self.root, shared=shared)

    def lock_shard(self, index: int, num: int) -> AbstractContextManager[bool]:
        """Lock a shard of a pass, so that no two processes embed the same chunks; see `lock_folder`."""
        refusal = (
            f"{self.root}: another clipglot command is at shard {index}/{num}: give each its own --shard I/N, or wait "
            "for that one"
        )
        return lock_folder(self.root / SHARDS / f"{index}-of-{num}", refusal=refusal)

    async def _open(self, *, mode: Any = None) -> None:
        if not self.read_only:
            with explain_os_error(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
        await super()._open(mode=mode)


def _rmdir_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise
