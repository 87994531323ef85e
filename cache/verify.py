"""Checking a cache: every chunk against its checksum, counts and shapes against each other, then the contents."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import zarr

from .checked import chunk_indices, chunk_name
from .contents import Fault, find_faults_in_contents, num_steps
from .errors import CacheError
from .format import (
    CAPTION_IMAGE,
    EMB,
    FILE,
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
    for name in (*cache.required_arrays, *_optional(cache), *_copied_tokens(cache)):
        try:
            arrays[name] = cache.array(name)
        except CacheError as error:
            faults.append(Fault(str(error)))
    total, done = sum(len(chunk_indices(array)) for array in arrays.values()), 0
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
    faults = faults or [Fault(what) for what in _count_faults(cache, arrays)]

    def step() -> None:
        nonlocal done
        done += 1
        on_progress(done, total)

    return faults or list(find_faults_in_contents(cache, step))


def _optional(cache: "Cache") -> list[str]:
    """Arrays that not every source gives."""
    return [name for name in (HASH, LANGUAGE, LOCATOR, f"{FILE}/bytes", f"{FILE}/offsets") if name in cache.root]


def _copied_tokens(cache: "Cache") -> list[str]:
    """Arrays of tokens that were uploaded or converted with the cache; others are checked as they are mapped."""
    if cache.is_folder:
        return []
    keys = filter(TOKEN_GROUP.fullmatch, sorted(cache.stored_names(TOKENS)))
    return [f"{TOKENS}/{key}/{name}" for key in keys for name in ("ids", "offsets")]


def _count_faults(cache: "Cache", arrays: Mapping[str, zarr.Array[Any]]) -> Iterator[str]:
    """What does not fit together although every checksum holds; these facts lie in zarr.json files."""
    remake, info, N, M = cache.remedy([]), cache.info, cache.info.num_pictures, cache.info.num_captions
    shapes: dict[str, tuple[int, ...]] = {
        EMB: (max(info.num_views, arrays[EMB].shape[0]), N, info.encoder.dim),  # more views may be under way
        NORM: (max(info.num_views, arrays[NORM].shape[0]), N),
        STATUS: (N,),
        f"{KEY}/offsets": (N + 1,),
        f"{TEXT}/offsets": (M + 1,),
        CAPTION_IMAGE: (M,),
    }
    if info.source.has_teacher:
        shapes |= {TEACHER_EMB: (1, M, info.encoder.dim), TEACHER_STATUS: (M,), f"{TEACHER_TEXT}/offsets": (M + 1,)}
    shapes |= {name: shape for name, shape in ((HASH, (N, 2)), (LOCATOR, (N, 3)), (LANGUAGE, (M,))) if name in arrays}
    wrong = {name: arrays[name].shape for name, shape in shapes.items() if arrays[name].shape != shape}
    for name, shape in wrong.items():
        yield f"{name}/zarr.json: shape {shape}, expected {shapes[name]}: {remake}"
    if arrays[EMB].chunks[1] != info.chunk_rows:
        yield f"zarr.json: chunk_rows is {info.chunk_rows}, the chunks of {EMB} have {arrays[EMB].chunks[1]}: {remake}"
    if wrong or arrays[EMB].chunks[1] != info.chunk_rows:
        return
    counts = {status.label: count for status, count in cache.count_status().items()}
    if info.state == "sealed" and counts != info.counts:
        yield f"zarr.json: counts are {info.counts}, the pictures' statuses say {counts}: {remake}"
