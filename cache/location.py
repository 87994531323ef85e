"""Files and folders on the disk or at URLs: what is there, what a folder lists, whether a file has changed.

A location is a `Path` or a `Url`. A `Url` has the methods of a `Path` that are needed here, by way of fsspec.
"""

import errno
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .errors import CacheError
from .store_errors import NOT_FOUND, explain_scheme_error, explain_store_error, scheme_of

HTTP = ("http", "https")
MAX_NAMES = 10_000  # of a folder that are compared with a mistyped one


def did_you_mean(path: Path) -> str:
    """Question after a path that does not exist: the existing path of the most similar name; empty without one.

    Args:
        path: that does not exist; of its folders one may be mistyped, too.
    """
    missing = next((part for part in (*reversed(path.parents), path) if not os.path.lexists(part)), None)
    if missing is None:
        return ""
    try:
        names = [entry.name for entry in islice(os.scandir(missing.parent), MAX_NAMES)]
    except OSError:
        return ""
    for name in get_close_matches(missing.name, names, 3):
        candidate = missing.with_name(name) / path.relative_to(missing)
        if os.path.lexists(candidate):
            return f" (did you mean {candidate}?)"
    return ""


class Url(str):
    """URL of a file or folder in an object store or on a web server, with some methods of `Path`, through fsspec.

    fsspec keeps what a store has answered until `refresh`. Every method that asks the store raises a CacheError if the
    store refuses access or cannot be reached, or if no installed package reads such URLs.

    >>> url = Url("s3://bucket/data") / "train.parquet"
    >>> str(url), url.name, url.stem, url.suffix
    ('s3://bucket/data/train.parquet', 'train.parquet', 'train', '.parquet')
    """

    __slots__ = ()

    @property
    def scheme(self) -> str:
        """The part before `://`; the last one of a chain such as `simplecache::s3://`."""
        return scheme_of(self)

    @property
    def is_web(self) -> bool:
        """Whether it is on a web server, which lists no folders and need not serve ranges."""
        return self.scheme in HTTP

    @property
    def name(self) -> str:
        """The last part."""
        return self.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """Suffix of the last part, with the dot."""
        return PurePosixPath(self.name).suffix

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self}/{name}")

    def absolute(self) -> "Url":
        """Itself: a URL does not depend on the working directory."""
        return self

    def filesystem(self) -> tuple[Any, str]:
        """The fsspec filesystem, with credentials from the environment, and the path in it."""
        from fsspec.core import url_to_fs  # here, because `--help` imports this module and must answer at once

        with explain_scheme_error(self):
            fs, path = url_to_fs(self)
        return fs, path

    def refresh(self) -> None:
        """Forget the answers of the store, so that it is asked again."""
        fs, _ = self.filesystem()
        fs.invalidate_cache()

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return self._info() is not None

    def is_file(self) -> bool:
        """Whether there is a file."""
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Whether there is a folder. Web servers have none: they do not list."""
        return not self.is_web and (self._info() or {}).get("type") == "directory"

    def state(self) -> str | None:
        """Fingerprint, which differs after a change: size and, if the store gives one, a tag; None if absent."""
        info = self._info()
        return None if info is None else _state(info)

    def open(self) -> "RangeFile":
        """Open for reading.

        Raises:
            CacheError: also if the file is absent.
        """
        return RangeFile(self)

    def _info(self) -> Mapping[str, Any] | None:
        fs, path = self.filesystem()
        try:
            with explain_store_error(self, ""):
                info: Mapping[str, Any] = fs.info(path)
                return info
        except NOT_FOUND:
            return None


Location = Path | Url


def to_location(text: str | Path) -> Location:
    """Parse a location from the command line, a settings file or a run's `run.json`.

    >>> to_location("s3://bucket/train.zarr/")
    's3://bucket/train.zarr'
    >>> to_location("file:///data/train.zarr").as_posix()
    '/data/train.zarr'
    """
    scheme, separator, path = str(text).partition("://")
    if not separator:
        return Path(text)
    return Path(path) if scheme in ("file", "local") else Url(str(text).rstrip("/"))


def is_hdf5(path: Path) -> bool:
    """Whether a path has the suffix of an HDF5 file."""
    return path.suffix.lower() in (".h5", ".hdf5")


class Entry(NamedTuple):
    """A name in a folder.

    Attributes:
        name: of a file or folder.
        is_dir: whether it is a folder, or a link to one.
        is_file: likewise of a file.
        state: fingerprint of a file at a URL, see `Url.state`; "" on the disk.
    """

    name: str
    is_dir: bool
    is_file: bool
    state: str = ""


def entries(folder: Location) -> list[Entry]:
    """List a folder, sorted by name; an absent folder has no entries.

    Raises:
        CacheError: a store refuses, or cannot be reached.
    """
    if isinstance(folder, Path):
        if not folder.is_dir():
            return []
        with os.scandir(folder) as files:
            return sorted(map(_local_entry, files))
    fs, path = folder.filesystem()
    try:
        with explain_store_error(folder, ""):
            infos = fs.ls(path, detail=True)
    except NOT_FOUND:
        return []
    by_path = [(info["name"].rstrip("/"), info) for info in infos]
    return sorted(
        Entry(name.rpartition("/")[2], info["type"] == "directory", info["type"] == "file", _state(info))
        for name, info in by_path
        if name != path.rstrip("/")  # an empty object that stands for the folder itself
    )


def _local_entry(file: os.DirEntry[str]) -> Entry:
    try:
        return Entry(file.name, file.is_dir(), file.is_file())
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return Entry(file.name, is_dir=False, is_file=False)  # a link to itself


def _state(info: Mapping[str, Any]) -> str:
    tag = next((info[name] for name in ("ETag", "etag", "md5Hash") if name in info), "")
    return f"{info.get('size')} {tag}"


class RangeFile(io.RawIOBase):
    """Seekable file in an object store; each read is one range request."""

    def __init__(self, url: Url) -> None:
        """Request the size of the file.

        Raises:
            CacheError: the file is absent, the store refuses access or cannot be reached.
        """
        self._url, self._position = url, 0
        self._fs, self._path = url.filesystem()
        with self._explain_errors():
            self._size = int(self._fs.info(self._path)["size"])

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Offset of the next byte to read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Change the offset, without a request."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read up to `size` bytes, or all up to the end of the file.

        Raises:
            CacheError: the file is absent by now, the store refuses access or cannot be reached.
        """
        end = self._size if size is None or size < 0 else min(self._position + size, self._size)
        if end <= self._position:
            return b""
        with self._explain_errors():
            data: bytes = self._fs.cat_file(self._path, start=self._position, end=end)
        self._position += len(data)
        return data

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            with explain_store_error(self._url, ""):
                yield
        except NOT_FOUND as error:
            raise CacheError(f"{self._url}: no such object: check the URL, or upload it again") from error
