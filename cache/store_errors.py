"""Errors of object stores and web servers, explained: what failed, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import CacheError

NOT_FOUND = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
S3 = ("s3", "s3a")
S3_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket"
)
S3_WRITE_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, of somebody who may write there"


@contextmanager
def explain_scheme_error(url: str) -> Iterator[None]:
    """Raise fsspec's errors for a URL that it cannot open as errors that say what to do.

    Raises:
        CacheError: in place of fsspec's own error.
    """
    try:
        yield
    except ImportError as error:
        remedy = "run `pip install s3fs`" if scheme_of(url) in S3 else "install that package"
        raise CacheError(f"{url}: {error}: {remedy}") from error
    except ValueError as error:  # how fsspec reports an unknown scheme
        raise CacheError(f"{url}: {error}: pass a local path, or a URL such as s3://bucket/train.zarr") from error


@contextmanager
def explain_store_error(url: str, key: str, done: str = "read") -> Iterator[None]:
    """Raise the errors of a store's library, which has its own types, as errors that say what to do.

    An absent object stays one of `NOT_FOUND`, unless it was to be written.

    Args:
        url: of the store, as the user gave it.
        key: of the object below it; "" for the URL itself.
        done: `read`, `written` or `deleted`.

    Raises:
        CacheError: the store refuses access or cannot be reached.
    """
    try:
        yield
    except NOT_FOUND as error:
        if done != "written":
            raise
        raise CacheError(f"{url}/{key} cannot be written ({error}): create the bucket, or check the URL") from error
    except CacheError:
        raise
    except Exception as error:
        scheme, remedy = scheme_of(url), "check the connection"
        if isinstance(error, PermissionError) or "credentials" in str(error).lower():
            remedy = f"set credentials in the environment, as the library for {scheme}:// reads them"
            if scheme in S3:
                remedy = f"set {S3_CREDENTIALS if done == 'read' else S3_WRITE_CREDENTIALS}"
        elif scheme in S3:
            remedy += ", and AWS_ENDPOINT_URL if the endpoint is not Amazon's"
        if done != "read":
            remedy += "; then run the same command again, finished chunks are kept"
        raise CacheError(f"{url}/{key} cannot be {done} ({str(error) or type(error).__name__}): {remedy}") from error


def scheme_of(url: str) -> str:
    """The part before `://`; the last one of a chain such as `simplecache::s3://`."""
    return url.partition("://")[0].rpartition("::")[2]
