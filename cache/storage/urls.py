"""Files in object stores and on web servers, through fsspec, with errors that say what to do."""

import io
import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from fsspec.core import url_to_fs

from ..errors import CacheError
from ..location import Url

AT_ONCE = 16  # images on their way to one process
HTTP = ("http", "https")


def open_filesystem(url: Url) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, with the environment's credentials, and the path in it.

    Raises:
        CacheError: nothing that is installed reads such URLs.
    """
    with known_scheme(url):
        fs, path = url_to_fs(url)
    return fs, path


def state_of(url: Url) -> str | None:
    """What a store tells of an object or a folder, None if there is none.

    Raises:
        CacheError: the store refuses, or cannot be reached.
    """
    fs, path = open_filesystem(url)
    try:
        with explain_store_error(url, ""):
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
            with explain_store_error(self._url, ""):
                yield
        except NOT_THERE as error:
            raise CacheError(f"{self._url}: no such object: check the URL, or upload it again") from error


def below(base: str, key: str) -> str | None:
    """The path of a key below a base in a store; None if it leads out, also by `%2e`, which web servers resolve.

    >>> below("bucket/images", "cats/1.jpg"), below("bucket/images", "cats/../1.jpg")
    ('bucket/images/cats/1.jpg', 'bucket/images/1.jpg')
    >>> below("bucket/images", "../secret.jpg"), below("bucket/images", "s3://bucket/1.jpg")
    (None, None)
    """
    plain = unquote(key).replace("\\", "/")
    if "://" in plain or any(_leads_out(form) for form in (key, plain)):
        return None
    has_dots = not {".", ".."}.isdisjoint(key.split("/"))
    return f"{base}/{posixpath.normpath(key) if has_dots else key}"  # in a store `a//b` is a name of its own


def _leads_out(key: str) -> bool:
    return key.startswith("/") or posixpath.normpath(key).split("/")[0] == ".."


NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
S3 = ("s3", "s3a")
S3_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket"
)
S3_WRITE_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of somebody who may write there"


@contextmanager
def known_scheme(url: Url) -> Iterator[None]:
    """Turn what fsspec raises on a URL that it cannot open into an error that says what to do."""
    try:
        yield
    except ImportError as error:
        remedy = "run `pip install 'clipglot[s3]'`" if url.scheme in S3 else "install that package"
        raise CacheError(f"{url}: {error}: {remedy}") from error
    except ValueError as error:  # so fsspec says that it does not know the scheme
        raise CacheError(f"{url}: {error}: pass a local path, or a URL such as s3://bucket/train.zarr") from error


@contextmanager
def explain_store_error(url: Url, key: str, done: str = "read") -> Iterator[None]:
    """Turn what a store's own library raises, each of its own types, into an error that says what to do."""
    try:
        yield
    except NOT_THERE as error:
        if done != "written":
            raise
        raise CacheError(f"{url}/{key} cannot be written ({error}): create the bucket, or check the URL") from error
    except CacheError:
        raise
    except Exception as error:
        remedy = "check the connection"
        if isinstance(error, PermissionError) or "credentials" in str(error).lower():
            remedy = f"set credentials in the environment, as the library for {url.scheme}:// reads them"
            if url.scheme in S3:
                remedy = f"set {S3_CREDENTIALS if done == 'read' else S3_WRITE_CREDENTIALS}"
        elif url.scheme in S3:
            remedy += ", and AWS_ENDPOINT_URL if the endpoint is not Amazon's"
        if done != "read":
            remedy += "; then run the same command again, finished chunks are kept"
        raise CacheError(f"{url}/{key} cannot be {done} ({str(error) or type(error).__name__}): {remedy}") from error
