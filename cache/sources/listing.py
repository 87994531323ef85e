"""What lies in a folder, on the disk or at a URL: the parts of a source that are found by their names."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CacheError
from ..location import Location, Url
from ..storage.urls import HTTP, NOT_FOUND, explain_store_error, open_filesystem, state_from_info
from .image_root import name_below


class Entry(NamedTuple):
    """A name in a folder.

    Attributes:
        name: of a file or folder.
        is_folder: whether it is a folder, or a link to one.
        is_file: likewise of a file.
        state: what a store tells of a file that changes when it does; "" on the disk.
    """

    name: str
    is_folder: bool
    is_file: bool
    state: str = ""


def look_again(location: Location) -> None:
    """Forget what a store has told: its library keeps listings, so that each is asked for once."""
    if isinstance(location, Url):
        fs, _ = open_filesystem(location)
        fs.invalidate_cache()


def entries(folder: Location) -> list[Entry]:
    """What lies in a folder, in the order of the names; nothing if there is no such folder.

    Raises:
        CacheError: a store refuses, or cannot be reached.
    """
    if isinstance(folder, Path):
        if not folder.is_dir():
            return []
        with os.scandir(folder) as found:
            return sorted(map(_entry, found))
    fs, path = open_filesystem(folder)
    try:
        with explain_store_error(folder, ""):
            listed = fs.ls(path, detail=True)
    except NOT_FOUND:
        return []
    named = [(entry["name"].rstrip("/"), entry) for entry in listed]
    return sorted(
        Entry(name.rpartition("/")[2], entry["type"] == "directory", entry["type"] == "file", state_from_info(entry))
        for name, entry in named
        if name != path.rstrip("/")  # an empty object that stands for the folder itself
    )


def _entry(found: os.DirEntry[str]) -> Entry:
    try:
        return Entry(found.name, found.is_dir(), found.is_file())
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return Entry(found.name, is_folder=False, is_file=False)  # a link to itself


def is_there(location: Location) -> bool:
    """Whether there is a file or a folder."""
    return location.exists() if isinstance(location, Path) else _told(location) is not None


def is_folder(location: Location) -> bool:
    """Whether there is a folder. Web servers have none: they do not list."""
    if isinstance(location, Path):
        return location.is_dir()
    return location.scheme not in HTTP and (_told(location) or {}).get("type") == "directory"


def is_file(location: Location) -> bool:
    """Whether there is a file."""
    if isinstance(location, Path):
        return location.is_file()
    return (_told(location) or {}).get("type") == "file"


def state_at(url: Url) -> str:
    """What a store tells of a file that changes when it does; "" if there is none."""
    told = _told(url)
    return "" if told is None else state_from_info(told)


def name_in(root: Location, location: Location) -> str:
    """The name of a file as seen from the image root.

    Raises:
        CacheError: it lies elsewhere.
    """
    if isinstance(root, Path) and isinstance(location, Path):
        return name_below(root, location)
    if not f"{location}".startswith(f"{root}/"):
        raise CacheError(f"{location} does not lie below {root}: pass --image-root, a folder or URL that holds it")
    return f"{location}".removeprefix(f"{root}/")


def _told(url: Url) -> Mapping[str, Any] | None:
    fs, path = open_filesystem(url)
    try:
        with explain_store_error(url, ""):
            told: Mapping[str, Any] = fs.info(path)
            return told
    except NOT_FOUND:
        return None
