"""Merge of several sealed caches of one tower: their rows in order, in new chunks, captions with their images."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import (
    EMB,
    HASH,
    IMPORTED,
    KEY,
    LANGUAGE,
    NORM,
    STATUS,
    TEACHER_EMB,
    TEACHER_TEXT,
    TEXT,
    TEXT_TARGET_ARRAYS,
    CacheInfo,
    SourceInfo,
)
from ..location import is_hdf5
from ..read.cache import Cache
from ..sources.source import RowBatch
from ..storage.atomic import atomic_directory, explain_os_error
from ..storage.digests import digests_of, first_lines
from ..storage.encoding import open_array
from ..storage.local import DurableLocalStore
from ..storage.ragged_bytes import RaggedBytes
from .caption_sets import merge_sets
from .convert import require_nothing
from .plan import plan_cache
from .seal import seal

COPIED_ROWS = 2**16  # whose keys and captions are in memory at once


def concatenate_caches(
    caches: Sequence[Cache],
    output: Path,
    *,
    prefixes: Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Cache:
    """Write one cache with the rows and caption sets of all; tokens are left out, training writes them again.

    Args:
        caches: two or more, sealed, of one tower.
        output: a Zarr folder; it must not exist.
        prefixes: for each cache, put before its keys, with a slash.
        on_progress: called with the chunks written and all chunks of the new cache.

    Returns:
        The new cache.

    Raises:
        CacheError: the caches differ in a setting, two have the same key, one is damaged, or the disk is full.
    """
    require_nothing(output)
    if is_hdf5(output):
        raise CacheError(f"{output}: merge into a Zarr folder, then `clipglot convert` it")
    for cache in caches:
        require_alike(caches[0].require_sealed(), cache.require_sealed())
        cache.require_arrays()
    starts = [""] * len(caches) if prefixes is None else [f"{prefix}/" for prefix in prefixes]
    require_distinct_keys(caches, starts)
    with explain_os_error(output), atomic_directory(output) as folder:
        # A limit counts lines of its own source alone.
        first = replace(caches[0].info, source=replace(caches[0].info.source, limit=None))
        batches = (batch for cache in _located(caches, starts) for batch in cache)
        files = [name for cache in caches for name in cache.files()]
        plan_cache(folder, batches, first, files=lambda: files, hashed=all(cache.arrays.has(HASH) for cache in caches))
        merged = Cache(folder, read_only=False)
        store = merged.arrays.store
        assert isinstance(store, DurableLocalStore)  # of a local folder
        with store.written_by_block():
            _copy_rows(caches, merged, on_progress)
            seal(merged)
            merged.arrays.write_info(_merged_info(caches, merged.info))
            merge_sets(caches, merged)
    return Cache(output)


def require_alike(ours: Cache, theirs: Cache) -> None:
    """Refuse caches whose rows are not comparable.

    Raises:
        CacheError: names the field and both values.
    """
    for (name, expected), (_, found) in zip(_identity(ours.info), _identity(theirs.info), strict=True):
        if expected != found:
            raise CacheError(
                f"these cannot be one cache: {name} differs ({ours.path}: {expected!r}, {theirs.path}: {found!r}): "
                + _remedy(name, ours, theirs)
            )


def _remedy(name: str, ours: Cache, theirs: Cache) -> str:
    """Advice on a field that differs."""
    for imported, other in ((theirs, ours), (ours, theirs)):
        if name == "precision" and any(source.kind == IMPORTED for source in imported.info.sources):
            precision = other.info.encoder.precision
            return f"if {imported.path} was computed in that, too, import it again with --precision {precision}"
    return "merge caches that were made with the same settings"


def _identity(info: CacheInfo) -> list[tuple[str, Any]]:
    """The settings that all rows of one cache share, by name."""
    encoder = info.encoder
    augmentation = str(info.augmentation) if info.augmentation and info.num_views > 1 else None
    return [
        *(
            (name, getattr(encoder, name))
            for name in ("weights_sha256", "preprocess", "quick_gelu", "dim", "precision")
        ),
        ("decoding", info.decoding),
        ("num_views", info.num_views),
        ("augmentation", augmentation),
        ("images", info.source.images),
        ("teacher", info.source.has_teacher),
        ("teacher_sha256", info.teacher_sha256),
    ]


def require_distinct_keys(caches: Sequence[Cache], starts: Sequence[str]) -> None:
    """Refuse caches with the same key, which would name two rows.

    Raises:
        CacheError: names the key and both caches.
    """
    digests = [
        digests_of(_keys(cache, begin, start))
        for cache, start in zip(caches, starts, strict=True)
        for begin in range(0, len(cache), COPIED_ROWS)
    ]
    first = first_lines(np.concatenate(digests))
    repeated = np.flatnonzero(first != np.arange(len(first)))
    if not len(repeated):
        return
    ends = np.cumsum([len(cache) for cache in caches])
    one, other = (int(np.searchsorted(ends, row, side="right")) for row in (first[repeated[0]], repeated[0]))
    row = int(repeated[0] - (ends[other] - len(caches[other])))
    remedy = "--prefix puts each cache's name before its keys" if not any(starts) else "rename one of the caches"
    raise CacheError(
        f"{caches[one].path} and {caches[other].path} both have {starts[other]}{caches[other].keys(row, row + 1)[0]} "
        f"({len(repeated):,} such): {remedy}, or leave one out"
    )


def _keys(cache: Cache, begin: int, start: str) -> RaggedBytes:
    keys = cache.arrays.read_ragged(KEY, begin, begin + COPIED_ROWS)
    return RaggedBytes.of([start.encode() + key for key in keys.split()]) if start else keys


def _located(caches: Sequence[Cache], starts: Sequence[str]) -> Iterator[Iterator[RowBatch]]:
    """The rows of each cache, with locators into the files of all."""
    num_files = 0
    for cache, start in zip(caches, starts, strict=True):
        yield _batches(cache, start, num_files)
        num_files += len(cache.files())


def _batches(cache: Cache, start: str, files_before: int) -> Iterator[RowBatch]:
    image_index = cache.caption_image()
    codes = cache.language_codes() if cache.arrays.has(LANGUAGE) else None
    for begin in range(0, len(cache), COPIED_ROWS):
        end = min(begin + COPIED_ROWS, len(cache))
        first, last = np.searchsorted(image_index, [begin, end]).tolist()
        locators = cache.locators(begin, end)
        if locators is not None:
            locators[locators[:, 0] >= 0, 0] += files_before
        yield RowBatch(
            keys=_keys(cache, begin, start),
            captions=cache.arrays.read_ragged(TEXT, first, last),
            image_index=image_index[first:last] - begin,
            translations=cache.arrays.read_ragged(TEACHER_TEXT, first, last) if cache.info.source.has_teacher else None,
            languages=None if codes is None else [cache.info.languages[code] for code in codes[first:last].tolist()],
            locators=locators,
            dropped={},
        )


def _copy_rows(caches: Sequence[Cache], merged: Cache, on_progress: Callable[[int, int], None]) -> None:
    """Copy embeddings, norms, hashes and statuses into the chunks of the new cache."""
    hashed = [HASH] if merged.arrays.has(HASH) else []
    names = (EMB, NORM, *hashed, STATUS, *(TEXT_TARGET_ARRAYS if merged.info.source.has_teacher else ()))
    arrays = {name: open_array(merged.arrays.root, name) for name in names}
    done, total = 0, sum(array.nchunks for array in arrays.values())
    # zarr leaves out chunks of zeros unless told otherwise, and does not keep that choice with the array.
    with zarr.config.set({"array.write_empty_chunks": True}):
        for name, array in arrays.items():
            row_axis = int(name in (EMB, NORM, TEACHER_EMB))  # after the axis of views
            for view in range(array.shape[0] if row_axis else 1):
                blocks = _blocks(caches, name, view if row_axis else None)
                for start, rows in _rechunked(blocks, array.chunks[row_axis]):
                    array[(view,) * row_axis + (slice(start, start + len(rows)),)] = rows
                    done += 1
                    on_progress(done, total)


def _blocks(caches: Sequence[Cache], name: str, view: int | None) -> Iterator[NDArray[Any]]:
    """The rows of an array, or of one view of it, chunk by chunk and cache by cache."""
    for cache in caches:
        for index in np.ndindex(*cache.arrays.array(name).cdata_shape):
            if view is None:
                yield cache.arrays.read_chunk(name, index)
            elif index[0] == view:
                yield cache.arrays.read_chunk(name, index)[0]


def _rechunked(blocks: Iterator[NDArray[Any]], size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Regroup rows into blocks of `size`, the last perhaps smaller, each with its first row.

    >>> [(start, rows.tolist()) for start, rows in _rechunked(iter([np.arange(3), np.arange(3, 5)]), 2)]
    [(0, [0, 1]), (2, [2, 3]), (4, [4])]
    """
    pending: list[NDArray[Any]] = []
    start = num_pending = 0
    for block in blocks:
        while num_pending + len(block) >= size:
            cut = size - num_pending
            yield start, np.concatenate([*pending, block[:cut]])
            start, block, pending, num_pending = start + size, block[cut:], [], 0
        if len(block):
            pending.append(block)
            num_pending += len(block)
    if pending:
        yield start, np.concatenate(pending)


def _merged_info(caches: Sequence[Cache], written: CacheInfo) -> CacheInfo:
    """The metadata of the merged cache, with what planning and sealing could not know."""
    source, *appended = _merged_sources(caches)
    dropped: Counter[str] = Counter()
    for cache in caches:
        dropped.update(cache.info.dropped_captions)
    largest = max(cache.info.max_pixels for cache in caches)
    written = replace(written, source=source, appended=appended, merged=True)
    return replace(written, dropped_captions=dict(dropped), max_pixels=largest)


def _merged_sources(caches: Sequence[Cache]) -> list[SourceInfo]:
    """The sources of all caches, each with the new row of its first image."""
    sources, before = [], 0
    for cache in caches:
        sources += [replace(source, first_row=before + source.first_row) for source in cache.info.sources]
        before += len(cache)
    return sources
