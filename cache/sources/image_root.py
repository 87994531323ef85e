"""The image root: files below it and never outside, on the disk or at a URL, whatever their names say.

On the disk nothing but a regular file is opened, and no link that replaces a file after it was checked is followed.
"""

import errno
import os
import posixpath
import stat
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from ..errors import CacheError
from ..format import RejectedImageError, Status
from ..location import Location, did_you_mean, entries

FOLDERS_TRIED = 100  # in search of the root that would fit
MAX_FILE_BYTES = 2**30  # some decoders (WebP, AVIF) read the whole file before they look at its size


def require_root(root: Location) -> None:
    """Check that the image root exists. Web servers do not list, so they are asked for nothing.

    Raises:
        CacheError: no such folder, or a store that refuses or cannot be reached.
    """
    if isinstance(root, Path):
        if not root.is_dir():
            raise CacheError(
                f"{root}: no such folder{did_you_mean(root)}: pass --image-root DIR, the folder that image paths start "
                "from"
            )
    elif not root.is_web:
        root.refresh()
        if not root.exists():
            raise CacheError(f"{root}: nothing there: pass --image-root URL, the folder that image paths start from")


def name_below(root: Location, location: Location) -> str:
    """The name of a file relative to the image root, by which `resolve_below` finds it.

    Raises:
        CacheError: it lies elsewhere, is a link that leads there, or has a name that is not UTF-8.
    """
    if not isinstance(root, Path) or not isinstance(location, Path):
        if not f"{location}".startswith(f"{root}/"):
            raise CacheError(f"{location} does not lie below {root}: pass --image-root, a folder or URL that holds it")
        return f"{location}".removeprefix(f"{root}/")
    if not location.is_relative_to(root) or not location.resolve().is_relative_to(root.resolve()):
        raise CacheError(
            f"{location} leads to {location.resolve()}, outside {root}: pass --image-root DIR, a folder that holds both"
        )
    name = location.relative_to(root).as_posix()
    if name.encode(errors="replace") != os.fsencode(name):
        raise CacheError(f"{root}: the name {name!r} in it is not UTF-8: rename it")
    return name


def fitting_root(root: Path, names: Sequence[str]) -> Path | None:
    """The folder below which some files are that are not below `root`; None if it is not found.

    It is looked for in the working directory, around `root`, and where absolute paths lead.
    """
    names = [name.replace("\\", "/") for name in names]
    if all(name.startswith("/") for name in names):
        folder = Path(os.path.commonpath([Path(name).parent for name in names]))
        return folder if Path(names[0]).is_file() else None
    with suppress(OSError):
        folders = [root / entry.name for entry in islice(entries(root), FOLDERS_TRIED) if entry.is_dir]
        for folder in chain([Path.cwd()], root.absolute().parents, folders):
            if any((folder / name).is_file() for name in names):
                return folder
    return None


def path_below(base: str, name: str) -> str | None:
    """Path of a name below a base in a store; None if it leads out, also by `%2e`, which web servers resolve.

    >>> path_below("bucket/images", "cats/1.jpg"), path_below("bucket/images", "cats/../1.jpg")
    ('bucket/images/cats/1.jpg', 'bucket/images/1.jpg')
    >>> path_below("bucket/images", "../secret.jpg"), path_below("bucket/images", "s3://bucket/1.jpg")
    (None, None)
    """
    decoded = unquote(name).replace("\\", "/")
    if "://" in decoded or any(_leads_out(form) for form in (name, decoded)):
        return None
    has_dots = not {".", ".."}.isdisjoint(name.split("/"))
    # Only then: in a store, `a//b` and `a/b` are different names.
    return f"{base}/{posixpath.normpath(name) if has_dots else name}"


def _leads_out(name: str) -> bool:
    return name.startswith("/") or posixpath.normpath(name).split("/")[0] == ".."


def open_below(root: Path, name: str, *, max_bytes: int | None = MAX_FILE_BYTES, buffering: int = -1) -> BinaryIO:
    """Open the file `name` below `root`, never anything outside it.

    Args:
        root: the image root, already resolved (`Path.resolve`).
        name: a path relative to the root; absolute paths below the root are fine.
        max_bytes: the largest file that is opened; None for any.
        buffering: as of `open`.

    Raises:
        RejectedImageError: it is missing, leaves the root (also through a link), is not a regular file, is too large
            or cannot be opened, which is then the cause.
    """
    path = _resolve_below(root, name)
    try:
        file: BinaryIO = open(path, "rb", buffering, opener=_open_no_link)  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise RejectedImageError(Status.UNREADABLE) from error
    status = _status_of_open(root, file.fileno(), max_bytes)
    if status is None:
        return file
    file.close()
    raise RejectedImageError(status)


def _resolve_below(root: Path, name: str) -> Path:
    try:
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise RejectedImageError(Status.OUTSIDE_ROOT)
        if not stat.S_ISREG(path.stat().st_mode):
            raise RejectedImageError(Status.UNREADABLE)
        return path
    except (ValueError, RuntimeError):  # a NUL in the path; a loop of links (before Python 3.13)
        raise RejectedImageError(Status.MISSING) from None
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
        raise RejectedImageError(Status.MISSING if missing else Status.UNREADABLE) from None


def _open_no_link(path: str, flags: int) -> int:
    """Open a resolved path: a link that has taken its place is not followed, nor is a FIFO waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _status_of_open(root: Path, descriptor: int, max_bytes: int | None) -> Status | None:
    """Why an open file is not to be read, whatever its path was a moment ago; None if it is."""
    with suppress(OSError):  # without /proc only the last part of the path is safe from such links
        if not Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(root):
            return Status.OUTSIDE_ROOT  # a folder above it has become a link
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        return Status.UNREADABLE
    return Status.TOO_LARGE if max_bytes is not None and info.st_size > max_bytes else None
