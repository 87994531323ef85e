"""Features of a cache's captions on disk: groups `tokens/features-<key>`, so that a frozen model runs once.

A group holds `pooled`, `[1, M, W] float16` in chunks `[1, R, W]`, and says in its attributes what made it. As with
embeddings, a chunk is whole or absent, so what a killed writer has finished is kept. The key is a sha256 over the same
description, which the caller makes.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import DamagedCacheError, Fault
from ..format import ATTRIBUTE
from .atomic import atomic_directory, explain_os_error, lock_folder, sweep_partial
from .encoding import UNREADABLE_METADATA, create_array, open_array
from .local import DurableLocalStore
from .mmap import MmapRows
from .token_arrays import ALREADY_EXISTS

POOLED = "pooled"
FEATURE_GROUP = re.compile("features-[0-9a-f]{64}")
CHUNK_ROWS = 2**12  # captions: what a kill costs

Compute = Callable[[slice], NDArray[np.float16]]
"""Gives the features `[r, W]` of some captions."""


def group_name(description: dict[str, Any]) -> str:
    """Name of the group of some features, by all that decides them."""
    return f"features-{hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()}"


def write_features(group: Path, description: dict[str, Any], num_captions: int, width: int, compute: Compute) -> None:
    """Compute the chunks that are absent and write each of them. Waits while another process writes the group.

    Args:
        group: folder `tokens/features-<key>`.
        description: what decides the features, as JSON; kept in the attributes.
        num_captions: M.
        width: W.
        compute: called for one chunk after the other, in order.

    Raises:
        CacheError: the group cannot be written, e.g. on a full disk, or is damaged.
    """
    with explain_os_error(group):
        if not group.exists():
            with lock_folder(group.parent, wait=True) as is_locked:
                zarr.open_group(DurableLocalStore(group.parent), mode="a", zarr_format=3)
                if not group.exists():
                    _create(group, description, num_captions, width, alone=is_locked)
        with lock_folder(group, wait=True) as is_locked:
            if is_locked:  # else another process may be writing there
                sweep_partial(group)
            array = _open(group, description, num_captions, width, writes=True)
            for chunk in _absent(array, group):
                rows_of = slice(chunk * array.chunks[1], min((chunk + 1) * array.chunks[1], num_captions))
                array[0, rows_of] = compute(rows_of)


def _create(group: Path, description: dict[str, Any], num_captions: int, width: int, *, alone: bool) -> None:
    """Write a group without chunks."""
    try:
        with atomic_directory(group, alone=alone) as partial:
            root = zarr.create_group(DurableLocalStore(partial), zarr_format=3)
            root.attrs[ATTRIBUTE] = description
            rows = max(1, min(CHUNK_ROWS, num_captions))
            create_array(root, POOLED, (1, num_captions, width), (1, rows, width), "float16")
    except OSError as error:
        if error.errno not in ALREADY_EXISTS:  # without locks, another process may have been first
            raise


def num_written(group: Path, description: dict[str, Any], num_captions: int, width: int) -> int:
    """Captions whose features are written; 0 without a group.

    Raises:
        CacheError: the group is damaged, or was made by something else.
    """
    if not group.exists():
        return 0
    array = _open(group, description, num_captions, width)
    absent = set(_absent(array, group))
    rows = array.chunks[1]
    return sum(min(rows, num_captions - i * rows) for i in range(array.cdata_shape[1]) if i not in absent)


def map_features(group: Path, description: dict[str, Any], num_captions: int, width: int) -> MmapRows:
    """Memory-map the features of all captions, `[M, W]`, after every chunk was compared with its checksum.

    Raises:
        CacheError: a chunk is absent or damaged, or the group was made by something else. The message says what to
            delete.
    """
    array = _open(group, description, num_captions, width)
    return MmapRows(array, group / POOLED, remedy=_chunk_remedy(array, group)).check()


def find_feature_faults(tokens: Path, num_captions: int) -> Iterator[Fault]:
    """Yield the faults of all groups of features in a folder `tokens`; absent chunks are none."""
    for group in sorted(tokens.iterdir()) if tokens.is_dir() else ():
        if not FEATURE_GROUP.fullmatch(group.name):
            continue
        try:
            array = _open(group, None, num_captions, None)
            if not list(_absent(array, group)):
                yield from MmapRows(array, group / POOLED, remedy=_chunk_remedy(array, group)).faults()
        except DamagedCacheError as error:
            yield error.fault


def _open(
    group: Path, description: dict[str, Any] | None, num_captions: int, width: int | None, *, writes: bool = False
) -> zarr.Array[Any]:
    """The array of a group; what is None is not compared."""
    remedy = f"delete {group}: training writes it again"
    try:
        root = zarr.open_group(DurableLocalStore(group, read_only=not writes), mode="r+" if writes else "r")
        array, stored = open_array(root, POOLED), root.attrs.asdict().get(ATTRIBUTE)
        if (
            array.dtype != np.float16
            or array.ndim != 3
            or array.shape[0] != 1
            or array.chunks[::2] != (1, array.shape[2])
        ):
            raise ValueError(f"{POOLED} is {array.dtype}, {array.shape} in chunks {array.chunks}")
    except UNREADABLE_METADATA as error:
        raise DamagedCacheError(Fault(f"{group} is no whole group of features ({error})", remedy)) from error
    if array.shape[1] != num_captions or width not in (None, array.shape[2]):
        expected = f"{num_captions:,} captions" + ("" if width is None else f", {width:,} features each")
        message = f"{group} holds {array.shape[1]:,} captions, {array.shape[2]:,} features each, expected {expected}"
        raise DamagedCacheError(Fault(message, remedy))
    if description is not None and stored != description:
        raise DamagedCacheError(Fault(f"{group} was made by another language model or for other captions", remedy))
    return array


def _absent(array: zarr.Array[Any], group: Path) -> Iterator[int]:
    """Numbers of the chunks that are not written."""
    for number in range(array.cdata_shape[1]):
        if not (group / POOLED / array.metadata.encode_chunk_key((0, number, 0))).exists():
            yield number


def _chunk_remedy(array: zarr.Array[Any], group: Path) -> Callable[[tuple[int, ...]], str]:
    def remedy(index: tuple[int, ...]) -> str:
        return f"delete {group / POOLED / array.metadata.encode_chunk_key(index)}: training computes it again"

    return remedy
