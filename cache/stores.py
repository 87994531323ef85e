"""Where zarr reads a cache from: a local folder, or an object store through fsspec, whose errors are explained here."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from .errors import CacheError
from .files import DurableLocalStore
from .format import EMBEDDED_ARRAYS, TEACHER_EMB
from .location import Location, Url

UPLOAD_AGAIN = "upload it again from the cache that this is a copy of"
NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
NUM_RECENT = 8  # objects of at most 16 MB: captions are read in parts, each of which would fetch its chunk anew
S3 = ("s3", "s3a")
S3_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or FSSPEC_S3_ANON=true for a public bucket"
)


class AbsentObjectError(CacheError):
    """An object that a cache must have is not in its store."""


class RemoteStore(FsspecStore):
    """The objects below a URL, read only.

    zarr takes an absent chunk for zeros. In a sealed cache each one is there, so an absent one is an error, which the
    read itself finds: no request asks beforehand.

    Attributes:
        url: as the user gave it.
        may_be_absent: arrays whose chunks a pass has still to write.
    """

    url: Url
    may_be_absent: tuple[str, ...] = ()
    _recent: OrderedDict[str, Buffer]

    @classmethod
    def at(cls, url: Url) -> "RemoteStore":
        """The store at a URL, with the credentials and the endpoint of the environment. Nothing is read yet.

        Raises:
            CacheError: nothing that is installed reads such URLs.
        """
        with known_scheme(url):
            opened = FsspecStore.from_url(url)
        store = cls(opened.fs, read_only=True, path=opened.path, allowed_exceptions=())
        store.url, store._recent = url, OrderedDict()
        return store

    async def get(self, key: str, prototype: BufferPrototype, byte_range: Any = None) -> Buffer | None:
        """One object, None where zarr can go without it.

        Raises:
            AbsentObjectError: a chunk is absent, or the whole cache.
            CacheError: the store refuses, or cannot be reached.
        """
        if byte_range is None and key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        try:
            with explained_store(self.url, key):
                value = await super().get(key, prototype, byte_range)
        except NOT_THERE as error:
            if key == "zarr.json":
                raise AbsentObjectError(
                    f"{self.url}: no such cache ({error}): check the URL, or upload a sealed cache to it"
                ) from error
            if "/c/" in key and not key.startswith(self.may_be_absent):
                raise AbsentObjectError(f"{self.url}: {key} is absent: {UPLOAD_AGAIN}") from error
            return None
        if value is not None and byte_range is None and not key.startswith((*EMBEDDED_ARRAYS, TEACHER_EMB)):
            self._recent[key] = value
            if len(self._recent) > NUM_RECENT:
                self._recent.popitem(last=False)
        return value

    def names(self, folder: str) -> list[str]:
        """What lies directly in a folder; nothing if there is none."""

        async def listed() -> list[str]:
            with explained_store(self.url, folder):
                return [name async for name in self.list_dir(folder)]

        return sync(listed())


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
def explained_store(url: Url, key: str) -> Iterator[None]:
    """Turn what a store's own library raises, each of its own types, into an error that says what to do."""
    try:
        yield
    except NOT_THERE:
        raise
    except Exception as error:
        remedy = "check the connection"
        if isinstance(error, PermissionError) or "credentials" in str(error).lower():
            remedy = f"set credentials in the environment, as the library for {url.scheme}:// reads them"
            if url.scheme in S3:
                remedy = f"set {S3_CREDENTIALS}"
        elif url.scheme in S3:
            remedy += ", and AWS_ENDPOINT_URL if the endpoint is not Amazon's"
        raise CacheError(f"{url}/{key} cannot be read ({str(error) or type(error).__name__}): {remedy}") from error


def open_store(location: Location, *, read_only: bool) -> DurableLocalStore | RemoteStore:
    """The store of a cache.

    Raises:
        CacheError: nothing there, no cache, or a URL that cannot be read or is to be written.
    """
    if isinstance(location, Url):
        if not read_only:
            raise CacheError(f"{location}: a cache at a URL is only read: write it to a local folder and upload it")
        return RemoteStore.at(location)
    _require_cache_folder(location)
    return DurableLocalStore(location, read_only=read_only)


def _require_cache_folder(path: Path) -> None:
    if not path.exists():
        raise CacheError(f"{path}: no such cache: make one with `clipglot cache SOURCE -o {path} …`")
    if not path.is_dir():
        raise CacheError(f"{path} is a file, expected a cache")
    if not (path / "zarr.json").exists():
        holds = "holds a run" if (path / "run.json").exists() else "has no zarr.json"
        raise CacheError(f"{path} {holds}, expected a cache")
