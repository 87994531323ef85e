"""Opens the store of a cache: a local folder, an HDF5 file or an object store."""

from pathlib import Path

from ..errors import CacheError
from ..location import Location, Url, is_hdf5
from ..metadata import RESTORE
from .hdf5 import Hdf5Store
from .local import DurableLocalStore
from .remote import RemoteStore

CacheStore = DurableLocalStore | RemoteStore
"""Where a cache lies: zarr's own interface, and names, read, write, keys_below, delete_below, delete_file, empty, sweep
and held."""


def store_at(location: Location, *, read_only: bool) -> CacheStore:
    """The store at a location, whatever is there.

    Raises:
        CacheError: nothing that is installed reads such URLs.
    """
    if isinstance(location, Url):
        return RemoteStore.at(location, read_only=read_only)
    return DurableLocalStore(location, read_only=read_only)


def open_store(location: Location, *, read_only: bool) -> CacheStore | Hdf5Store:
    """The store of a cache.

    Raises:
        CacheError: nothing there, no cache, a URL that nothing reads, or an HDF5 file that is to be written.
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
