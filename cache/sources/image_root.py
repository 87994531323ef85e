"""Files below a root and never outside it, whatever their names say; nothing but a regular file is opened."""

import errno
import os
import stat
from pathlib import Path
from typing import IO

from ..errors import CacheError
from ..format import Status
from .source import RejectedImageError

MAX_FILE_BYTES = 2**30  # some decoders (WebP, AVIF) read the whole file before they look at its size


def require_image_root(root: Path) -> None:
    """Check the folder that keys are relative to.

    Raises:
        CacheError: no such folder.
    """
    if not root.is_dir():
        raise CacheError(f"{root}: no such folder: pass --image-root DIR, the folder that image paths start from")


def name_below(root: Path, path: Path) -> str:
    """The name by which `resolve_below` finds a file.

    Raises:
        CacheError: it lies elsewhere, is a link that leads there, or has a name that is no UTF-8.
    """
    if not path.is_relative_to(root) or not path.resolve().is_relative_to(root.resolve()):
        raise CacheError(
            f"{path} leads to {path.resolve()}, outside {root}: pass --image-root DIR, a folder that holds both"
        )
    name = path.relative_to(root).as_posix()
    if name.encode(errors="replace") != os.fsencode(name):
        raise CacheError(f"{root}: the name {name!r} in it is no UTF-8: rename it")
    return name


def resolve_below(root: Path, name: str) -> Path:
    """The file `name` below `root`, never anything outside it.

    Args:
        root: the image root, already resolved (`Path.resolve`).
        name: a path relative to the root; absolute paths below the root are fine.

    Raises:
        RejectedImageError: it is missing, leaves the root (also through a symlink) or is no regular file.
    """
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise RejectedImageError(Status.OUTSIDE_ROOT)
        if not stat.S_ISREG(path.stat().st_mode):
            raise RejectedImageError(Status.UNREADABLE)
        return path
    except (ValueError, RuntimeError):  # a NUL in the path; a loop of symlinks (before Python 3.13)
        raise RejectedImageError(Status.MISSING) from None
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
        raise RejectedImageError(Status.MISSING if missing else Status.UNREADABLE) from None


def open_below(root: Path, key: str) -> IO[bytes]:
    """Open the image `key` below `root`, as `resolve_below` finds it.

    Raises:
        RejectedImageError: as `resolve_below`, or it is huge or cannot be read.
    """
    path = resolve_below(root, key)
    try:
        file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 (the caller closes it)
    except OSError:
        raise RejectedImageError(Status.UNREADABLE) from None
    found = os.fstat(file.fileno())  # of what was opened, whatever stood there a moment ago
    if stat.S_ISREG(found.st_mode) and found.st_size <= MAX_FILE_BYTES:
        return file
    file.close()
    raise RejectedImageError(Status.TOO_LARGE if stat.S_ISREG(found.st_mode) else Status.UNREADABLE)


def _open_at_once(path: str, flags: int) -> int:
    """A FIFO that took the file's place a moment ago would otherwise be waited for."""
    return os.open(path, flags | os.O_NONBLOCK)
