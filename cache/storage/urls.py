"""Files in object stores and on web servers, read through fsspec, with errors that say what to do."""

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

AT_ONCE = 16  # concurrent requests of one process
HTTP = ("http", "https")
S3 = ("s3", "s3a")
S3_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket"
)
S3_WRITE_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of somebody who may write there"
NOT_FOUND = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def open_filesystem(url: Url) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, with credentials from the environment, and the path in it.

    Raises:
        CacheError: no installed package reads such URLs.
    """
    with explain_scheme_error(url):
        fs, path = url_to_fs(url)
    return fs, path


def state_of(url: Url) -> str | None:
    """Fingerprint of an object or a folder, which differs after a change; None if the object is absent.

    Raises:
        CacheError: the store refuses access or cannot be reached.
    """
    fs, path = open_filesystem(url)
    try:
        with explain_store_error(url, ""):
            fs.invalidate_cache()
            return state_from_info(fs.info(path))
    except NOT_FOUND:
        return None


def state_from_info(info: Mapping[str, Any]) -> str:
    """Fingerprint of an object, from its fsspec info: its size and, if the store gives one, a tag of its content."""
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
        self._fs, self._path = open_filesystem(url)
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


def below(base: str, key: str) -> str | None:
    """Path of a key below a base in a store; None if it leads out, also by `%2e`, which web servers resolve.

    >>> below("bucket/images", "cats/1.jpg"), below("bucket/images", "cats/../1.jpg")
    ('bucket/images/cats/1.jpg', 'bucket/images/1.jpg')
    >>> below("bucket/images", "../secret.jpg"), below("bucket/images", "s3://bucket/1.jpg")
    (None, None)
    """
    plain = unquote(key).replace("\\", "/")
    if "://" in plain or any(_leads_out(form) for form in (key, plain)):
        return None
    has_dots = not {".", ".."}.isdisjoint(key.split("/"))
    return f"{base}/{posixpath.normpath(key) if has_dots else key}"  # in a store, `a//b` and `a/b` are different names


def _leads_out(key: str) -> bool:
    return key.startswith("/") or posixpath.normpath(key).split("/")[0] == ".."


@contextmanager
def explain_scheme_error(url: Url) -> Iterator[None]:
    """Raise fsspec's errors for a URL that it cannot open as errors that say what to do."""
    try:
        yield
    except ImportError as error:
        remedy = "run `pip install 'clipglot[s3]'`" if url.scheme in S3 else "install that package"
        raise CacheError(f"{url}: {error}: {remedy}") from error
    except ValueError as error:  # how fsspec reports an unknown scheme
        raise CacheError(f"{url}: {error}: pass a local path, or a URL such as s3://bucket/train.zarr") from error


@contextmanager
def explain_store_error(url: Url, key: str, done: str = "read") -> Iterator[None]:
    """Raise the errors of a store's library, which has its own types, as errors that say what to do."""
    try:
        yield
    except NOT_FOUND as error:
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
