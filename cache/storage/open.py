"""Store of a cache, opened by location: a local folder, an HDF5 file or an object store."""

from pathlib import Path

from ..errors import CacheError
from ..location import Location, Url, did_you_mean, is_hdf5
from ..metadata import RESTORE
from .hdf5 import Hdf5Store
from .local import DurableLocalStore
from .remote import RemoteStore

CacheStore = DurableLocalStore | RemoteStore
"""A store that a cache can be written to. It has zarr's own interface, and the methods names, read, write, keys_below,
delete_below, delete_file, empty, sweep, lock and lock_shard."""


def store_at(location: Location, *, read_only: bool) -> CacheStore:
    """The store at a location, without a check of what is there.

    Raises:
        CacheError: no installed package reads such URLs.
    """
    if isinstance(location, Url):
        return RemoteStore.at(location, read_only=read_only)
    return DurableLocalStore(location, read_only=read_only)


def open_store(location: Location, *, read_only: bool) -> CacheStore | Hdf5Store:
    """The store of an existing cache.

    Raises:
        CacheError: the location is absent or not a cache, no installed package reads such URLs, or it is an HDF5 file
            and `read_only` is False.
    """
    if isinstance(location, Path):
        require_cache(location)
        if _is_hdf5_file(location):
            return _open_hdf5(location, read_only)
    return store_at(location, read_only=read_only)


def require_cache(path: Path) -> None:
    """Refuse a path on the disk that holds no cache; its content is not read.

    Raises:
        CacheError: nothing there, or something else; the message says how to make one.
    """
    if not _is_hdf5_file(path):
        _require_cache_folder(path)
    elif not path.exists():
        raise CacheError(f"{path}: no such cache{did_you_mean(path)}: make one with `clipglot convert CACHE {path}`")


def _is_hdf5_file(path: Path) -> bool:
    return is_hdf5(path) and not path.is_dir()


def _open_hdf5(path: Path, read_only: bool) -> Hdf5Store:
    if not read_only:
        raise CacheError(f"{path}: a cache in an HDF5 file is only read: work on a Zarr one and convert that")
    return Hdf5Store(path)


def _require_cache_folder(path: Path) -> None:
    if not path.exists():
        raise CacheError(
            f"{path}: no such cache{did_you_mean(path)}: make one with `clipglot cache SOURCE -o {path} …`"
        )
    if not path.is_dir():
        raise CacheError(f"{path} is a file, expected a cache: make one with `clipglot cache {path} -o CACHE …`")
    if not (path / "zarr.json").exists():
        if (path / "run.json").exists():
            raise CacheError(f"{path} holds a run, expected a cache")
        raise CacheError(f"{path} has no zarr.json, expected a cache: pass one; if this was one, {RESTORE}")
