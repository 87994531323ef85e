"""What lies at URLs: images below an image root there, and the larger files of sources.

An error is either the image's, which costs its row, or the store's, which stops the pass: a store that is down or
refuses everybody must not pass for thousands of broken images.
"""

import errno
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import Status
from ..location import Location, Url
from ..storage.urls import AT_ONCE, HTTP, NOT_FOUND, below, explain_store_error, open_filesystem, state_of
from .image_root import MAX_FILE_BYTES, open_below, require_image_root
from .source import Reader, RejectedImageError


def require_root(root: Location) -> None:
    """Check what keys are relative to.

    Raises:
        CacheError: no such folder, or a store that cannot be read.
    """
    if isinstance(root, Url):
        require_remote_root(root)
    else:
        require_image_root(root)


class PathReader(Reader):
    """Reads files by their path below a root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    def below(cls, root: Location) -> Reader:
        """A reader of what lies below a root, on the disk or at a URL.

        Raises:
            CacheError: no such folder, or a store that cannot be read.
        """
        require_root(root)
        return UrlReader(root) if isinstance(root, Url) else cls(root.resolve())

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of each file; a file that vanishes or fails while it is read is unreadable."""
        assert locators is None
        for key in keys:
            try:
                with open_below(self._root, key) as file:
                    yield file.read()
            except RejectedImageError as rejected:
                yield rejected.status
            except OSError:
                yield Status.UNREADABLE


FIRST_BYTES = 2**25  # fetched of any image; the rest of a larger one comes alone, when it is its turn
PAUSES_S = (0.5, 2.0, 8.0)  # before another try, for libraries that do not try again by themselves
MAX_PATH_BYTES = 1024  # S3 calls a longer one an error of the request, not an object that is absent
_NO_SUCH_RANGE = 416
_LATER = (408, 429)  # too slow, too often: the server's trouble


def require_remote_root(url: Url) -> None:
    """Check the URL that keys are relative to. Web servers do not list, so they are asked for nothing.

    Raises:
        CacheError: nothing there, or the store refuses.
    """
    if url.scheme not in HTTP and state_of(url) is None:
        raise CacheError(f"{url}: nothing there: pass --image-root URL, the folder that image paths start from")


class UrlReader(Reader):
    """Reads images below a URL, several at a time; nothing that `..` or another address leads to."""

    def __init__(self, root: Url) -> None:
        self._root = root

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of each image.

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
        """All of an image unless it is large."""
        return self._range(key, 0, FIRST_BYTES)

    def whole(self, key: str, coming: Future[bytes | Status]) -> bytes | Status:
        """All of an image whose first bytes were asked for."""
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
            except NOT_FOUND:
                return Status.MISSING
            except Exception as error:  # each library has types of its own
                code = _http_status(error)
                if code == _NO_SUCH_RANGE or getattr(error, "errno", None) == errno.EINVAL:
                    return b""  # of an empty object, or behind the last byte
                if isinstance(error, PermissionError) or (code and 400 <= code < 500 and code not in _LATER):
                    return self._refused(key, error)
                if pause_s is None or hasattr(self._fs, "retries"):  # the library has tried again by itself
                    with explain_store_error(self._root, key):
                        raise
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _refused(self, key: str, error: Exception) -> Status:
        """A store that still shows its root refuses this image alone."""
        if self._root.scheme not in HTTP:
            try:
                self._fs.info(self._base)
            except Exception as refused:
                with explain_store_error(self._root, key):
                    raise error from refused
        return Status.UNREADABLE


def _http_status(error: Exception) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None
