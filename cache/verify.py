"""Checking a cache: every chunk against its checksum, counts and shapes against each other, then the contents."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import zarr

from .checked import chunk_indices, chunk_name, groups_above
from .contents import Fault, find_faults_in_contents, num_steps
from .errors import CacheError
from .format import (
    CAPTION_IMAGE,
    EMB,
    HASH,
    KEY,
    LANGUAGE,
    LOCATOR,
    NORM,
    STATUS,
    TEACHER_EMB,
    TEACHER_STATUS,
    TEACHER_TEXT,
    TEXT,
    TOKENS,
)
from .tokens import TOKEN_GROUP, find_token_faults

if TYPE_CHECKING:
    from .store import Cache

MAX_CHUNKS = 10_000_000  # of an array: of 16 MB each 160 TB


def find_faults(cache: "Cache", on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[Fault]:
    """Check all of a cache; what is damaged is not looked into.

    Args:
        cache: planned or sealed.
        on_progress: called with steps done and to be done.

    Raises:
        CacheError: planning did not finish, so there is nothing to check.
    """
    cache.require_laid_out()
    faults: list[Fault] = []
    arrays: dict[str, zarr.Array[Any]] = {}
    tokens = list(filter(TOKEN_GROUP.fullmatch, sorted(cache.stored_names(TOKENS))))
    # In a folder the arrays of tokens are checked as they are mapped.
    copied = [] if cache.is_folder else [f"{TOKENS}/{key}/{name}" for key in tokens for name in ("ids", "offsets")]
    names = [*cache.array_names, *copied]
    for name in groups_above([*names, f"{TOKENS}/"] if tokens else names):
        try:
            cache.require_group(name)
        except CacheError as error:
            faults.append(Fault(str(error)))
    for name in names:
        try:
            arrays[name] = cache.array(name)
        except CacheError as error:
            faults.append(Fault(str(error)))
    for name, what in _shape_faults(cache, arrays).items():
        faults.append(Fault(what))
        del arrays[name]  # its chunks may be more than anybody can list
    total, done = sum(array.nchunks for array in arrays.values()), 0
    if not faults:
        total += num_steps(cache)
    for name, array in arrays.items():
        for index in chunk_indices(array):
            if fault := cache.chunk_fault(name, index):
                chunk = (name, index)
                faults.append(Fault(f"{chunk_name(array, index)}: {fault}: {cache.remedy([chunk])}", chunk))
            done += 1
            on_progress(done, total)
    if cache.is_folder:
        faults += map(Fault, find_token_faults(cache.folder / TOKENS, cache.info.num_captions))
    faults = faults or [Fault(what) for what in _count_faults(cache)]

    def step() -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    return faults or list(find_faults_in_contents(cache, step))


def _shape_faults(cache: "Cache", arrays: Mapping[str, zarr.Array[Any]]) -> dict[str, str]:
    """What does not fit together although every checksum holds, by array; these facts lie in zarr.json files."""
    remake, info, N, M = cache.remedy([]), cache.info, cache.info.num_pictures, cache.info.num_captions
    num_views = {name: max((info.num_views, *arrays[name].shape[:1])) for name in (EMB, NORM) if name in arrays}
    shapes: dict[str, tuple[int, ...]] = {
        EMB: (num_views.get(EMB, 0), N, info.encoder.dim),  # more views may be under way
        NORM: (num_views.get(NORM, 0), N),
        STATUS: (N,),
        HASH: (N, 2),
        LOCATOR: (N, 3),
        f"{KEY}/offsets": (N + 1,),
        f"{TEXT}/offsets": (M + 1,),
        CAPTION_IMAGE: (M,),
        LANGUAGE: (M,),
        TEACHER_EMB: (1, M, info.encoder.dim),
        TEACHER_STATUS: (M,),
        f"{TEACHER_TEXT}/offsets": (M + 1,),
    }
    faults = {}
    for name, array in arrays.items():
        if array.shape != shapes.get(name, array.shape):
            faults[name] = f"{name}/zarr.json: shape {array.shape}, expected {shapes[name]}: {remake}"
        elif array.nchunks > MAX_CHUNKS:
            faults[name] = (
                f"{name}/zarr.json: shape {array.shape} in chunks of {array.chunks} is {array.nchunks:,} chunks, more "
                f"than {MAX_CHUNKS:,}: {remake}"
            )
    if EMB in arrays and EMB not in faults and arrays[EMB].chunks[1] != info.chunk_rows:
        found = arrays[EMB].chunks[1]
        faults[EMB] = f"zarr.json: chunk_rows is {info.chunk_rows}, the chunks of {EMB} have {found}: {remake}"
    return faults


def _count_faults(cache: "Cache") -> Iterator[str]:
    """Counts that the statuses do not bear out."""
    counts = {status.label: count for status, count in cache.count_status().items()}
    if cache.info.state == "sealed" and counts != cache.info.counts:
        yield f"zarr.json: counts are {cache.info.counts}, the pictures' statuses say {counts}: {cache.remedy([])}"
