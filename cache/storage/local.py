"""Zarr store in a local folder with atomic, durable writes, and the folder's lock for writers."""

import asyncio
import errno
import os
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from .atomic import PARTIAL, atomic_write, explain_os_error, lock_folder, require_folder_or_absent, sweep_partial

ZARR_JSON = "zarr.json"  # of the group: a cache is there if it is
TRIES = 5  # at a file whose folder others delete


class DurableLocalStore(LocalStore):
    """zarr's LocalStore with an fsync before the replace.

    zarr 3.1 replaces atomically but does not sync, so after a power cut a chunk can have its name and no bytes.
    """

    async def set(self, key: str, value: Buffer) -> None:
        """Write one chunk or metadata file, whole or not at all."""
        await asyncio.to_thread(self.set_sync, key, value)  # inline, an fsync would hold up the reads on zarr's loop

    def set_sync(self, key: str, value: Buffer) -> None:
        """The same for zarr's synchronous path (zarr >= 3.1.6)."""
        self._check_writable()
        path = self.root / key
        with explain_os_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, value.as_buffer_like())

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder; nothing if there is none."""
        require_folder_or_absent(self.root)
        try:
            return [entry.name for entry in (self.root / folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, key: str) -> bytes | None:
        """A small file, None if there is none."""
        try:
            return (self.root / key).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, key: str, data: bytes) -> None:
        """Write a small file whole, also while others delete the folder that it lies in."""
        path = self.root / key
        with explain_os_error(path):
            for _ in range(TRIES):
                path.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    return atomic_write(path, data)
            raise FileNotFoundError(errno.ENOENT, "its folder is deleted again and again")

    def keys_below(self, folder: str) -> list[str]:
        """All files below a folder, from the top; not what killed writers left."""
        found = (path for path in (self.root / folder).rglob("*") if path.is_file() and path.suffix != PARTIAL)
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def delete_below(self, folder: str) -> None:
        """Delete a folder, if there is one. What others put into it meanwhile stays."""
        if not (self.root / folder).is_dir():
            return  # to try would be an error on a disk that is read only
        with explain_os_error(self.root / folder):
            for path, folders, files in os.walk(self.root / folder, topdown=False):
                for name in files:
                    Path(path, name).unlink(missing_ok=True)
                for name in folders:
                    _rmdir_if_empty(Path(path, name))
            _rmdir_if_empty(self.root / folder)

    def delete_file(self, key: str) -> None:
        """Delete a small file, and its folder if it was the last one in it."""
        path = self.root / key
        with explain_os_error(path):
            path.unlink(missing_ok=True)
            _rmdir_if_empty(path.parent)

    def empty(self, *, for_good: bool = False) -> None:
        """Delete what an interrupted plan left. Its mark goes last: a kill in here leaves an interrupted plan too.

        Args:
            for_good: the folder itself goes as well.
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
        """Delete what killed writers left, while nobody else writes but in the folder `keep`."""
        sweep_partial(self.root, keep=keep)

    def held(self, *, shared: bool = False) -> AbstractContextManager[bool]:
        """The folder, held for one writer or for several that share it; see `lock_folder`."""
        return lock_folder(self.root, shared=shared)

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
