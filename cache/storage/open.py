"""Store of a cache, opened by location: a local folder, an HDF5 file or an object store."""

from pathlib import Path

from ..errors import CacheError
from ..location import Location, Url, is_hdf5
from ..metadata import RESTORE
from .hdf5 import Hdf5Store
from .local import DurableLocalStore
from .remote import RemoteStore

CacheStore = DurableLocalStore | RemoteStore
"""A store that a cache can be written to. It has zarr's own interface, and the methods names, read, write, keys_below,
delete_below, delete_file, empty, sweep and lock."""


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
    if isinstance(location, Path) and is_hdf5(location) and not location.is_dir():
        return _open_hdf5(location, read_only)
    if isinstance(location, Path):
        _require_cache_folder(location)
    return store_at(location, read_only=read_only)


def _open_hdf5(path: Path, read_only: bool) -> Hdf5Store:
    if not read_only:
        raise CacheError(f"{path}: a cache in an HDF5 file is only read: work on a Zarr one and convert that")
    if not path.exists():
        raise CacheError(f"{path}: no such cache: make one with `clipglot convert CACHE {path}`")
    return Hdf5Store(path)


def _require_cache_folder(path: Path) -> None:
    if not path.exists():
        raise CacheError(f"{path}: no such cache: make one with `clipglot cache SOURCE -o {path} …`")
    if not path.is_dir():
        raise CacheError(f"{path} is a file, expected a cache")
    if not (path / "zarr.json").exists():
        if (path / "run.json").exists():
            raise CacheError(f"{path} holds a run, expected a cache")
        raise CacheError(f"{path} has no zarr.json, expected a cache: pass one; if this was one, {RESTORE}")
