"""What lies at URLs: pictures below an image root there, and the larger files of sources.

An error is either the picture's, which costs its row, or the store's, which stops the pass: a store that is down or
refuses everybody must not pass for thousands of broken pictures.
"""

import errno
import io
import os
import posixpath
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import numpy as np
from fsspec.core import url_to_fs
from numpy.typing import NDArray

from .below import MAX_FILE_BYTES
from .errors import CacheError
from .format import Status
from .location import Url
from .source import Reader
from .stores import NOT_THERE, explained_store, known_scheme

AT_ONCE = 16  # pictures on their way to one process
FIRST_BYTES = 2**25  # fetched of any picture; the rest of a larger one comes alone, when it is its turn
PAUSES_S = (0.5, 2.0, 8.0)  # before another try, for libraries that do not try again by themselves
MAX_PATH_BYTES = 1024  # S3 calls a longer one an error of the request, not an object that is absent
HTTP = ("http", "https")
_NO_SUCH_RANGE = 416
_LATER = (408, 429)  # too slow, too often: the server's trouble


def open_filesystem(url: Url) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, with the environment's credentials, and the path in it.

    Raises:
        CacheError: nothing that is installed reads such URLs.
    """
    with known_scheme(url):
        fs, path = url_to_fs(url)
    return fs, path


def require_remote_root(url: Url) -> None:
    """Check the URL that keys are relative to. Web servers do not list, so they are asked for nothing.

    Raises:
        CacheError: nothing there, or the store refuses.
    """
    if url.scheme not in HTTP and state_of(url) is None:
        raise CacheError(f"{url}: nothing there: pass --image-root URL, the folder that picture paths start from")


def state_of(url: Url) -> str | None:
    """What a store tells of an object or a folder, None if there is none.

    Raises:
        CacheError: the store refuses, or cannot be reached.
    """
    fs, path = open_filesystem(url)
    try:
        with explained_store(url, ""):
            fs.invalidate_cache()
            return told_state(fs.info(path))
    except NOT_THERE:
        return None


def told_state(told: Mapping[str, Any]) -> str:
    """By which a changed object is recognised: its size and, where the store tells one, a tag of its content."""
    tag = next((told[name] for name in ("ETag", "etag", "md5Hash") if name in told), "")
    return f"{told.get('size')} {tag}"


class RangeFile(io.RawIOBase):
    """A file in an object store, of which the ranges that are asked for are fetched, each by one request."""

    def __init__(self, url: Url) -> None:
        """Ask for its size.

        Raises:
            CacheError: there is none, the store refuses, or cannot be reached.
        """
        self._url, self._position = url, 0
        self._fs, self._path = open_filesystem(url)
        with self._explained():
            self._size = int(self._fs.info(self._path)["size"])

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file; nothing is asked for."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, fewer at the end of the file.

        Raises:
            CacheError: the file is gone, the store refuses, or cannot be reached.
        """
        end = self._size if size is None or size < 0 else min(self._position + size, self._size)
        if end <= self._position:
            return b""
        with self._explained():
            found: bytes = self._fs.cat_file(self._path, start=self._position, end=end)
        self._position += len(found)
        return found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with explained_store(self._url, ""):
                yield
        except NOT_THERE as error:
            raise CacheError(f"{self._url}: no such object: check the URL, or upload it again") from error


class UrlReader(Reader):
    """Reads pictures below a URL, several at a time; nothing that `..` or another address leads to."""

    def __init__(self, root: Url) -> None:
        self._root = root

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of each picture.

        Raises:
            CacheError: the store refuses, or cannot be reached.
        """
        assert locators is None
        objects = _Objects(self._root)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            coming: deque[tuple[str, Future[bytes | Status]]] = deque()
            for key in keys:
                coming.append((key, threads.submit(objects.first_bytes, key)))
                if len(coming) == AT_ONCE:
                    yield objects.whole(*coming.popleft())
            while coming:
                yield objects.whole(*coming.popleft())


class _Objects:
    """Fetches objects below a URL."""

    def __init__(self, root: Url) -> None:
        self._root = root
        self._fs, self._base = open_filesystem(root)

    def first_bytes(self, key: str) -> bytes | Status:
        """All of a picture unless it is large."""
        return self._range(key, 0, FIRST_BYTES)

    def whole(self, key: str, coming: Future[bytes | Status]) -> bytes | Status:
        """All of a picture whose first bytes were asked for."""
        first = coming.result()
        if isinstance(first, Status) or len(first) < FIRST_BYTES:
            return first
        rest = self._range(key, FIRST_BYTES, MAX_FILE_BYTES + 1)
        if isinstance(rest, Status):
            return rest
        return first + rest if len(first) + len(rest) <= MAX_FILE_BYTES else Status.TOO_LARGE

    def _range(self, key: str, start: int, end: int) -> bytes | Status:
        path = below(self._base, key.removeprefix(f"{self._root}/"))
        if path is None:
            return Status.OUTSIDE_ROOT
        if len(path.encode()) > MAX_PATH_BYTES:
            return Status.MISSING
        for pause_s in (*PAUSES_S, None):
            try:
                found: bytes = self._fs.cat_file(path, start=start, end=end)
                return found
            except NOT_THERE:
                return Status.MISSING
            except Exception as error:  # each library has types of its own
                code = _http_status(error)
                if code == _NO_SUCH_RANGE or getattr(error, "errno", None) == errno.EINVAL:
                    return b""  # of an empty object, or behind the last byte
                if isinstance(error, PermissionError) or (code and 400 <= code < 500 and code not in _LATER):
                    return self._refused(key, error)
                if pause_s is None or hasattr(self._fs, "retries"):  # the library has tried again by itself
                    with explained_store(self._root, key):
                        raise
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _refused(self, key: str, error: Exception) -> Status:
        """A store that still shows its root refuses this picture alone."""
        if self._root.scheme not in HTTP:
            try:
                self._fs.info(self._base)
            except Exception as refused:
                with explained_store(self._root, key):
                    raise error from refused
        return Status.UNREADABLE


def below(base: str, key: str) -> str | None:
    """The path of a key below a base in a store; None if it leads out, also by `%2e`, which web servers resolve.

    >>> below("bucket/pictures", "cats/1.jpg"), below("bucket/pictures", "cats/../1.jpg")
    ('bucket/pictures/cats/1.jpg', 'bucket/pictures/1.jpg')
    >>> below("bucket/pictures", "../secret.jpg"), below("bucket/pictures", "s3://bucket/1.jpg")
    (None, None)
    """
    plain = unquote(key).replace("\\", "/")
    if "://" in plain or any(_leads_out(form) for form in (key, plain)):
        return None
    has_dots = not {".", ".."}.isdisjoint(key.split("/"))
    return f"{base}/{posixpath.normpath(key) if has_dots else key}"  # in a store `a//b` is a name of its own


def _leads_out(key: str) -> bool:
    return key.startswith("/") or posixpath.normpath(key).split("/")[0] == ".."


def _http_status(error: Exception) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None
