"""Atomic writes of files and folders, and locks on folders.

Data is written under a temporary name, synced to the disk, and then renamed. So a file or folder is complete or absent.
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
RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")
SWEEPING_S = 10.0  # enough for the last process that leaves a shared folder to delete partial files
POLL_S = 0.05
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # e.g. NFS does not lock folders


def atomic_write(path: Path, data: Any) -> None:
    """Write `data` (bytes-like) to `path` atomically: a reader sees the old file or the complete new one."""
    with _written_beside(path, data) as partial:
        partial.replace(path)


def atomic_create(path: Path, data: Any) -> None:
    """Write `data` to `path` atomically, unless a file is there, however it came to be meanwhile."""
    with _written_beside(path, data) as partial:
        with suppress(FileExistsError):
            os.link(partial, path)
        partial.unlink()


@contextmanager
def _written_beside(path: Path, data: Any) -> Iterator[Path]:
    """Write a partial file beside `path`, for the block to give it its name."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with _named(path), open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_to_disk(path.parent)  # otherwise a power cut can undo the rename


@contextmanager
def atomic_directory(path: Path, *, alone: bool = True) -> Iterator[Path]:
    """Write a folder atomically: yield a temporary sibling of `path`, renamed to `path` when the block succeeds.

    Partial folders of killed processes with the same target are deleted first.

    Args:
        path: absent or empty.
        alone: no other process writes `path` now. Decides whether to delete partial folders where locks are missing.
    """
    with partial_of(path, Path.mkdir, alone) as partial:
        try:
            with _named(path):
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
    """Yield a new partial file or folder beside `path`, locked until the block ends so that no process deletes it.

    Args:
        path: the target; its parent folder is created.
        make: creates the partial file or folder.
        alone: as in `atomic_directory`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}{re.escape(PARTIAL)}")
    for leftover in path.parent.iterdir():
        if not partial_name.fullmatch(leftover.name):
            continue
        with suppress(FileNotFoundError, PermissionError), _try_lock(leftover) as is_locked:
            if is_locked or (is_locked is None and alone):
                shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
    descriptor = None
    while descriptor is None:
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        make(partial)
        descriptor = lock_new(partial)
    try:
        yield partial
    finally:
        os.close(descriptor)


def lock_new(path: Path) -> int | None:
    """Lock a new file or folder; return the descriptor, which holds the lock while it is open.

    None if another process deleted it before it was locked, because it looked like a leftover of a killed process.
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
def _try_lock(path: Path) -> Iterator[bool | None]:
    """Lock a file or folder without waiting; yield whether that succeeded, None on a filesystem without locks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            is_locked: bool | None = lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) or None
        except BlockingIOError:
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


@contextmanager
def lock_folder(
    folder: Path, *, wait: bool = False, shared: bool = False, refusal: str | None = None
) -> Iterator[bool]:
    """Lock a folder for one writer, or for several that share it; yield False on a filesystem without locks.

    The folder is created, and deleted again if it is empty at the end. The lock is the kernel's, on the folder itself,
    and ends with the process, even when that is killed. On a filesystem without locks, nothing is locked.

    Args:
        folder: to lock.
        wait: for the process that has locked it, rather than raise.
        shared: with other processes that pass `shared`. The last to leave deletes partial files of killed processes;
            a process that arrives then waits.
        refusal: what the error says if another process has locked it.

    Raises:
        CacheError: another process has locked it, it is not a folder, or it cannot be created.
    """
    require_folder_or_absent(folder)
    existed = folder.exists()
    with explain_os_error(folder):
        descriptor, is_locked = _open_locked(folder, wait, shared, refusal)
    try:
        yield is_locked
        if shared and is_locked:
            with suppress(BlockingIOError):  # another process still uses it, and sweeps when it leaves
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                sweep_partial(folder, keep=TOKENS)
    finally:
        if not existed:
            with suppress(OSError):  # not empty, as expected, or another process has it now
                if os.path.samestat(os.fstat(descriptor), folder.stat()):
                    folder.rmdir()
        os.close(descriptor)


def _open_locked(folder: Path, wait: bool, shared: bool, refusal: str | None) -> tuple[int, bool]:
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    deadline = monotonic() + (SWEEPING_S if shared else 0)
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # another process has just deleted the empty folder, or the one above
            continue
        try:
            is_locked = lock(descriptor, operation)
        except BlockingIOError:
            os.close(descriptor)
            if monotonic() < deadline:
                sleep(POLL_S)
                continue
            raise CacheError(
                refusal or f"{folder}: another clipglot command is writing it: wait for it to end, or choose another -o"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor, is_locked
        os.close(descriptor)  # the process that had it locked has deleted the empty folder


def lock(descriptor: int, operation: int) -> bool:
    """Call `fcntl.flock`; return False on a filesystem without locks.

    Raises:
        BlockingIOError: another process holds the lock, and `operation` does not wait.
    """
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


def require_folder_or_absent(path: Path) -> None:
    """Check that `path` is a folder or absent.

    Raises:
        CacheError: it is a file or a broken symlink.
    """
    if path.is_symlink() and not path.exists():
        raise CacheError(f"{path} is a symlink to {path.readlink()}, which is absent: choose another -o")
    if path.exists() and not path.is_dir():
        raise CacheError(f"{path} is a file: choose another -o")


def sweep_partial(root: Path, *, keep: str | None = None) -> int:
    """Delete partial files and folders of killed writers below `root`.

    Args:
        root: the folder.
        keep: name of an entry of `root` to skip, because other processes may be writing there.

    Returns:
        Number of deleted files and folders.
    """
    num_deleted = 0
    for path in list(root.rglob(f"*{PARTIAL}")):
        if not os.path.lexists(path) or path.relative_to(root).parts[0] == keep:
            continue  # deleted with its folder, or to keep
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        num_deleted += 1
    return num_deleted


@contextmanager
def explain_os_error(
    path: Path, remedy: str = "make it writable or choose another -o", again: str = "run the same command again"
) -> Iterator[None]:
    """Raise OS errors of writing, such as a full disk or a read-only folder, as errors that say what to do.

    The error names `path`, not the file below it or its temporary name.

    Args:
        path: the file or folder that the user knows.
        remedy: what to do, unless the disk is full or fails.
        again: what to do then.

    Raises:
        UnwritableError: writing failed.
    """
    try:
        yield
    except Exception as error:
        cause = _os_error_in(error)
        if cause is None:
            raise
        remedy = {errno.EIO: "check the disk"}.get(cause.errno or 0, remedy)
        remedy = "free some space" if cause.errno in NO_SPACE else remedy
        raise UnwritableError(f"{path}: cannot be written ({cause.strerror or cause}): {remedy} and {again}") from cause


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have OS errors of writing name the file; those of a full disk name none."""
    try:
        yield
    except Exception as error:
        cause = _os_error_in(error)
        if cause is None or cause.filename is not None:
            raise
        cause.filename = str(path)
        raise cause from (None if cause is error else error)


def _os_error_in(error: BaseException) -> OSError | None:
    """The OS error that an exception is, has as its cause, or tells of, as those of safetensors and tokenizers do."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, UnwritableError):
        assert isinstance(error.__cause__, OSError)
        return error.__cause__
    told = RUST_OS_ERROR.search(str(error))
    return OSError(int(told[1]), os.strerror(int(told[1]))) if told else None


def sync_to_disk(path: Path) -> None:
    """Sync a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as a hex string."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
