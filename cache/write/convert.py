"""Conversion of a sealed cache to a Zarr folder or an HDF5 file, chunk by chunk.

Chunks are checked against their checksums as they are read, and the output appears only when it is complete.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ..errors import CacheError
from ..format import ATTRIBUTE, EMB, NORM
from ..location import is_hdf5
from ..metadata import sets_attributes, with_checksum
from ..read.cache import Cache
from ..storage.atomic import atomic_directory, explain_os_error, partial_of, sync_to_disk
from ..storage.encoding import create_array
from ..storage.hdf5 import grid, new_file, region
from ..storage.local import DurableLocalStore

CreateArray = Callable[[str, tuple[int, ...], tuple[int, ...], str], Any]
"""Creates an array from name, shape, chunk shape and dtype; it is written by assigning to its regions."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Counts of a conversion.

    Attributes:
        num_arrays: copied, token arrays included.
        num_chunks: of all arrays.
        num_bytes: of these chunks, uncompressed.
        wall_s: seconds from start to end.
    """

    num_arrays: int
    num_chunks: int
    num_bytes: int
    wall_s: float


def convert(
    cache: Cache, output: Path, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Converted:
    """Copy a sealed cache with all its arrays. Views that are still being added are left out.

    Args:
        cache: local or at a URL.
        output: an HDF5 file if its name ends in .h5 or .hdf5, else a Zarr folder; it must not exist.
        on_progress: called after each chunk with the chunks done and all chunks.

    Raises:
        CacheError: the cache is not sealed or is damaged, the output exists, or the disk is full.
    """
    started = time.perf_counter()
    cache.require_sealed()
    cache.require_arrays()
    groups, names = cache.arrays.nodes()
    grids = {name: grid(_shape(cache, name), cache.arrays.array(name).chunks) for name in names}
    done, num_bytes, total = 0, 0, sum(int(np.prod(size)) for size in grids.values())
    attributes = with_checksum(cache.arrays.root.attrs[ATTRIBUTE]) | sets_attributes(cache.arrays.caption_sets())
    with new_store(output, attributes, groups) as create:
        for name in names:
            array, shape = cache.arrays.array(name), _shape(cache, name)
            copy = create(name, shape, array.chunks, array.dtype.name)
            for index in np.ndindex(*grids[name]):
                block = cache.arrays.read_chunk(name, index)
                copy[region(shape, array.chunks, index)] = block
                done, num_bytes = done + 1, num_bytes + block.nbytes
                on_progress(done, total)
    return Converted(num_arrays=len(names), num_chunks=total, num_bytes=num_bytes, wall_s=time.perf_counter() - started)


@contextmanager
def new_store(output: Path, attributes: Mapping[str, Any], groups: list[str]) -> Iterator[CreateArray]:
    """Yield a function that creates arrays in a new store; the store appears at `output` only when the block succeeds.

    Args:
        output: an HDF5 file or a Zarr folder, by its name.
        attributes: of the root group.
        groups: to create, parents first.

    Raises:
        CacheError: the output exists, or the disk is full.
    """
    require_nothing(output)
    with explain_os_error(output, "make its folder writable or choose another name"):
        if is_hdf5(output):
            with whole_file(output) as path, new_file(path, attributes) as file:
                for name in groups:
                    file.create_group(name)
                yield file.create_array
        else:
            with atomic_directory(output) as folder, (store := DurableLocalStore(folder)).written_by_block():
                root = zarr.create_group(store, zarr_format=3, attributes=dict(attributes))
                for name in groups:
                    root.create_group(name)
                yield partial(create_array, root)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file beside `path`; it is renamed to `path` only when the block succeeds.

    Raises:
        FileExistsError: `path` exists by then.
    """
    with partial_of(path, Path.touch) as partial:
        try:
            yield partial
            sync_to_disk(partial)
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            partial.rename(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    sync_to_disk(path.parent)


def require_nothing(output: Path) -> None:
    """Refuse an output that exists.

    Raises:
        CacheError: it exists.
    """
    if os.path.lexists(output):
        raise CacheError(f"{output} exists: choose another name, or delete it")


def _shape(cache: Cache, name: str) -> tuple[int, ...]:
    """The shape of an array's copy: without views that a pass has begun to add."""
    shape = cache.arrays.array(name).shape
    return (cache.info.num_views, *shape[1:]) if name in (EMB, NORM) else shape
