"""Readers of images that are files of their own, below an image root on the disk or at a URL.

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

from ..format import RejectedImageError, Status
from ..location import Location, Url
from ..store_errors import NOT_FOUND, explain_store_error
from .image_root import MAX_FILE_BYTES, open_below, path_below, require_root
from .reader import Reader

CONCURRENT_REQUESTS = 16  # of one process to a store
FIRST_BYTES = 2**25  # fetched of any image; the rest of a larger one comes alone, when it is its turn
PAUSES_S = (0.5, 2.0, 8.0)  # before another try, for libraries that do not try again by themselves
MAX_PATH_BYTES = 1024  # S3 calls a longer one an error of the request, not an object that is absent
_RANGE_NOT_SATISFIABLE = 416
_TRY_LATER = (408, 429)  # too slow, too many requests: the server's trouble


def with_slashes(key: str) -> str:
    """A path from a table that was written on Windows, tried where there is no file of the very name."""
    return key.replace("\\", "/")


class PathReader(Reader):
    """Reads files by their path below a root on the disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @classmethod
    def below(cls, root: Location) -> Reader:
        """A reader of the files below a root, on the disk or at a URL.

        Raises:
            CacheError: no such folder, or a store that cannot be read.
        """
        require_root(root)
        return UrlReader(root) if isinstance(root, Url) else cls(root.resolve())

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of each file; a file that vanishes or fails while it is read is unreadable."""
        assert locators is None
        for key in keys:
            content = self._content(key)
            if content is Status.MISSING and "\\" in key:
                content = self._content(with_slashes(key))
            yield content

    def _content(self, key: str) -> bytes | Status:
        try:
            with open_below(self._root, key) as file:
                return file.read()
        except RejectedImageError as rejected:
            return rejected.status
        except OSError:
            return Status.UNREADABLE


class UrlReader(Reader):
    """Reads objects below a URL, several at a time; nothing that `..` or another address leads to."""

    def __init__(self, root: Url) -> None:
        self._root = root

    def read(self, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of each object.

        Raises:
            CacheError: the store refuses, or cannot be reached.
        """
        assert locators is None
        objects = _Objects(self._root)
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as threads:
            requests: deque[tuple[str, Future[bytes | Status]]] = deque()
            for key in keys:
                requests.append((key, threads.submit(objects.first_bytes, key)))
                if len(requests) == CONCURRENT_REQUESTS:
                    yield objects.complete(*requests.popleft())
            while requests:
                yield objects.complete(*requests.popleft())


class _Objects:
    """Fetches objects below a URL."""

    def __init__(self, root: Url) -> None:
        self._root = root
        self._fs, self._base = root.filesystem()

    def first_bytes(self, key: str) -> bytes | Status:
        """All of an object unless it is large."""
        content = self._range(key, 0, FIRST_BYTES)
        return self._range(with_slashes(key), 0, FIRST_BYTES) if content is Status.MISSING and "\\" in key else content

    def complete(self, key: str, request: Future[bytes | Status]) -> bytes | Status:
        """All of an object whose first bytes were requested."""
        first = request.result()
        if isinstance(first, Status) or len(first) < FIRST_BYTES:
            return first
        rest = self._range(key, FIRST_BYTES, MAX_FILE_BYTES + 1)
        if rest is Status.MISSING and "\\" in key:
            rest = self._range(with_slashes(key), FIRST_BYTES, MAX_FILE_BYTES + 1)
        if isinstance(rest, Status):
            return rest
        return first + rest if len(first) + len(rest) <= MAX_FILE_BYTES else Status.TOO_LARGE

    def _range(self, key: str, start: int, end: int) -> bytes | Status:
        path = path_below(self._base, key.removeprefix(f"{self._root}/"))
        if path is None:
            return Status.OUTSIDE_ROOT
        if len(path.encode()) > MAX_PATH_BYTES:
            return Status.MISSING
        for pause_s in (*PAUSES_S, None):
            try:
                data: bytes = self._fs.cat_file(path, start=start, end=end)
                return data
            except NOT_FOUND:
                return Status.MISSING
            except Exception as error:  # each library has types of its own
                code = _http_status(error)
                if code == _RANGE_NOT_SATISFIABLE or getattr(error, "errno", None) == errno.EINVAL:
                    return b""  # of an empty object, or behind the last byte
                if isinstance(error, PermissionError) or (code and 400 <= code < 500 and code not in _TRY_LATER):
                    return self._refused(key, error)
                if pause_s is None or hasattr(self._fs, "retries"):  # the library has tried again by itself
                    with explain_store_error(self._root, key):
                        raise
                time.sleep(pause_s)
        raise AssertionError("the last try returns or raises")

    def _refused(self, key: str, error: Exception) -> Status:
        """A store that still shows its root refuses this object alone."""
        if not self._root.is_web:
            try:
                self._fs.info(self._base)
            except Exception as refused:
                with explain_store_error(self._root, key):
                    raise error from refused
        return Status.UNREADABLE


def _http_status(error: Exception) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None
