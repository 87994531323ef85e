"""Atomic writes of files and folders, and locks on folders.

Whatever is written gets a temporary name, is synced to the disk, and is then renamed, so it is whole or absent.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from ..errors import CacheError, UnwritableError
from ..format import TOKENS

PARTIAL = ".partial"
SWEEPING_S = 10.0  # time in which the last process to leave a shared folder has swept it
POLL_S = 0.05
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # e.g. NFS, which has none for folders


def sync_to_disk(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: Any) -> None:
    """Write `data` (bytes-like) to `path` so that a reader sees the old file or the whole new one."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)  # without it a power cut can undo the rename


@contextmanager
def atomic_directory(path: Path, *, alone: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to fill; it takes the name `path` only when the block ends well.

    What earlier, killed attempts at the same name left behind goes first.

    Args:
        path: absent, or empty.
        alone: no other process may be at the same name now, where the filesystem has no locks that would tell.
    """
    with partial_of(path, Path.mkdir, alone) as partial:
        try:
            yield partial
            for written in (*partial.rglob("*"), partial):
                sync_to_disk(written)
            partial.rename(path)  # fails if a non-empty `path` appeared meanwhile
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    sync_to_disk(path.parent)


@contextmanager
def partial_of(path: Path, make: Callable[[Path], None], alone: bool = True) -> Iterator[Path]:
    """Yield a new temporary name beside `path`, locked until the block ends so that others know it is in use.

    Args:
        path: whose folder is created.
        make: creates the file or folder of that name.
        alone: as of `atomic_directory`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}{re.escape(PARTIAL)}")
    for left in path.parent.iterdir():
        if not partial_name.fullmatch(left.name):
            continue
        with suppress(FileNotFoundError, PermissionError), _held_if_free(left) as is_free:
            if is_free or (is_free is None and alone):
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()
    descriptor = None
    while descriptor is None:
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        make(partial)
        descriptor = hold_new(partial)
    try:
        yield partial
    finally:
        os.close(descriptor)


def lock(descriptor: int, operation: int) -> bool:
    """`fcntl.flock`; returns whether there is a lock, which some filesystems have not.

    Raises:
        BlockingIOError: another holds it, and the operation does not wait.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def hold_new(path: Path) -> int | None:
    """The descriptor that holds a file or folder that was just made, as long as it is open.

    None if another process swept it before it was held, as something that nobody has any more.
    """
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            lock(descriptor, fcntl.LOCK_EX)
        except OSError:
            os.close(descriptor)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
    return None


@contextmanager
def _held_if_free(path: Path) -> Iterator[bool | None]:
    """Hold a file or folder if nobody else does; yields whether it is held now, None if the filesystem has no locks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            held: bool | None = lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) or None
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def sweep_partial(root: Path, *, keep: str | None = None) -> int:
    """Delete what killed writers left below `root`, but for a folder `keep` in it, where others may be writing.

    Returns:
        How many files and folders went.
    """
    num = 0
    for path in list(root.rglob(f"*{PARTIAL}")):
        if not os.path.lexists(path) or path.relative_to(root).parts[0] == keep:
            continue  # it went with its folder, or stays
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        num += 1
    return num


@contextmanager
def explain_os_error(path: Path, remedy: str = "make it writable or choose another -o") -> Iterator[None]:
    """Turn a full disk or a read-only folder into an error that says what to do.

    What is written within, perhaps under a temporary name, is a part of `path`: that is what the error names.

    Args:
        path: what the user knows of.
        remedy: where there is room, but `path` may not be written.

    Raises:
        UnwritableError: as said.
    """
    try:
        yield
    except (OSError, UnwritableError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        assert isinstance(cause, OSError)
        remedy = "free some space" if cause.errno in NO_SPACE else remedy
        raise UnwritableError(
            f"{path}: cannot be written ({cause.strerror or cause}): {remedy} and run the same command again"
        ) from cause


@contextmanager
def lock_folder(folder: Path, *, wait: bool = False, shared: bool = False) -> Iterator[bool]:
    """Hold `folder` for one writer, or for several that share it; it is created, and goes again if it stayed empty.

    The lock is the kernel's, on the folder itself: it ends with the process, however that dies. Filesystems without
    such locks do without; what is yielded says whether there is one.

    Args:
        folder: to hold.
        wait: for a process that holds it, rather than raise.
        shared: with others that share it; whoever leaves last sweeps what killed ones left. Who comes meanwhile waits.

    Raises:
        CacheError: another process holds it in a way that excludes this one, it is no folder, or it cannot be created.
    """
    require_folder_or_absent(folder)
    existed = folder.exists()
    with explain_os_error(folder):
        descriptor, alone = _open_locked(folder, wait, shared)
    try:
        yield alone
        if shared and alone:
            with suppress(BlockingIOError):  # another is at it still, and sweeps when it leaves
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                sweep_partial(folder, keep=TOKENS)
    finally:
        if not existed:
            with suppress(OSError):  # it has been filled, as it should, or is another's by now
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    folder.rmdir()
        os.close(descriptor)


def _open_locked(folder: Path, wait: bool, shared: bool) -> tuple[int, bool]:
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    patient_until = monotonic() + (SWEEPING_S if shared else 0)
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            alone = lock(descriptor, operation)
        except BlockingIOError:
            os.close(descriptor)
            if monotonic() < patient_until:
                sleep(POLL_S)
                continue
            raise CacheError(
                f"{folder}: another clipglot command is writing it: wait for it to end, or choose another -o"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor, alone
        os.close(descriptor)  # its last holder took the empty folder away meanwhile


def require_folder_or_absent(path: Path) -> None:
    """Raise if something that is no folder stands at `path`.

    Raises:
        CacheError: a file, or a symlink to nothing.
    """
    if path.is_symlink() and not path.exists():
        raise CacheError(f"{path} is a symlink to {path.readlink()}, which is absent: choose another -o")
    if path.exists() and not path.is_dir():
        raise CacheError(f"{path} is a file: choose another -o")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
