"""Further sources for a sealed cache: their new images become rows after the old ones, and only they are embedded.

The planned arrays, old rows and new, are staged whole below `append/`, while the cache stays as it is. Then one write
of the metadata says "appending", and what is staged takes its place; each step of that can be done again, so whoever
finds the mark finishes it. Embeddings stay where they are, and their arrays get longer, unless their chunks are far too
small for the new size. N images before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import (
    CAPTION_IMAGE,
    EMBEDDED_ARRAYS,
    FILE,
    HASH,
    KEY,
    LANGUAGE,
    LOCATOR,
    STAGED,
    STATUS,
    TEXT,
    TOKENS,
    SourceInfo,
    plan_chunk_rows,
)
from ..read.cache import Cache
from ..sources.source import RowBatch
from ..storage.digests import Digests, digests_of
from ..storage.local import ZARR_JSON
from ..storage.open import CacheStore
from ..storage.ragged import create_array
from .plan import write_files
from .row_writer import RowWriter
from .seal import write_info

KNOWN = "--append"  # the reason why images that are there already are left out
FEW = 4  # chunks that are so many times smaller than a plan's are made anew
OLD_ROWS_AT_A_TIME = 2**18


def plan_append(
    cache: Cache,
    batches: Iterable[RowBatch],
    source: SourceInfo,
    *,
    files: Callable[[], Sequence[str]] = list,
    left_out: Counter[str],
    rechunked: bool = True,
    on_progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Give a sealed cache rows for the images of a source that it does not have.

    Args:
        cache: sealed, without a teacher, open for writing.
        batches: of the source. Rows of images that the cache has are left out.
        source: what it is; its limit counts new images.
        files: as of `plan_cache`.
        left_out: likewise; images that are known are counted here, too.
        rechunked: chunks that are far too small for the new size are made anew.
        on_progress: called with the number of rows read.

    Returns:
        How many images are new; if none is, the cache stays sealed, and keeps that the source was there.

    Raises:
        CacheError: an array of the cache cannot be opened, or no room to write; or what reading the source raises.
    """
    assert cache.info.state == "sealed"
    finish_append(cache)
    cache.require_described()  # while it is as it was; once the mark says "appending" there is no way back
    info, N = cache.info, len(cache)
    staged = cache.root.create_group(STAGED)
    limit = None if source.limit is None else N + source.limit
    writer, done = RowWriter(staged, teacher=False, limit=limit), 0
    old_digests = [digests_of(cache_batch.keys) for cache_batch in _stored(cache, writer)]
    known = np.concatenate(old_digests)
    known = known[np.lexsort((known[:, 1], known[:, 0]))]
    old_files = cache.files()
    for batch in batches:
        done += len(batch)
        is_new = ~_are_in(digests_of(batch.keys), known)
        left_out[KNOWN] += int(np.count_nonzero(~is_new))
        new = batch if is_new.all() else batch.take(is_new)
        if new.locators is not None:
            new = replace(new, locators=new.locators + np.array([len(old_files), 0, 0]))
        on_progress(done)
        if not writer.append(new) and len(new):
            break
    num, num_captions = writer.close()
    sources, out = [*info.appended, replace(source, first_row=N)], dict(Counter(info.left_out) + Counter(left_out))
    if num == N:
        write_info(cache, replace(info, appended=sources, left_out=out))
        finish_append(cache)
        return 0
    with_files = write_files(staged, [*old_files, *files()])
    chunk_rows = plan_chunk_rows(num, info.encoder.dim, info.batch_size)
    if rechunked and chunk_rows >= FEW * info.chunk_rows:
        _stage_embedded(cache, staged, num, chunk_rows)
    else:
        chunk_rows = info.chunk_rows
    appending = replace(
        info,
        state="appending",
        appended=sources,
        num_pictures=num,
        num_captions=num_captions,
        chunk_rows=chunk_rows,
        dropped_captions=dict(Counter(info.dropped_captions) + writer.dropped),
        left_out=out,
        languages=list(writer.codes),
        counts={},
        num_duplicates=None,
        arrays=[*_embedded(cache), *writer.names, *with_files],
    )
    write_info(cache, appending)  # from here on what is staged is what counts
    finish_append(cache)
    return num - N


def finish_append(cache: Cache) -> None:
    """Put what is staged into its place if the metadata says so, else take away what a killed plan left.

    Args:
        cache: open for writing, by nobody else.
    """
    store = cache.store
    if cache.info.state == "appending":
        if ZARR_JSON in store.names(STAGED):
            _put_in_place(cache)
            store.delete_file(f"{STAGED}/{ZARR_JSON}")  # it is in its place, and may go
        store.delete_below(STAGED)
        store.delete_below(TOKENS)  # of the captions before; training writes them again
        write_info(cache, replace(cache.info, state="planned"))
        cache.refresh()
    elif STAGED in store.names(""):
        store.delete_below(STAGED)


def _put_in_place(cache: Cache) -> None:
    store, num = cache.store, cache.info.num_pictures
    for name in (KEY, TEXT, LOCATOR, FILE, LANGUAGE, CAPTION_IMAGE, *EMBEDDED_ARRAYS):
        if ZARR_JSON in store.names(f"{STAGED}/{name}"):
            store.delete_below(name)
    for key in store.keys_below(STAGED):
        if key != f"{STAGED}/{ZARR_JSON}":
            _copy(store, key, key.removeprefix(f"{STAGED}/"))
    for name in _embedded(cache):
        array, axis = cache.array_now(name), _row_axis(name)
        array.resize((*array.shape[:axis], num, *array.shape[axis + 1 :]))


def _copy(store: CacheStore, key: str, to: str) -> None:
    content = store.read(key)
    if content is None:
        raise CacheError(f"{key} vanished while it was copied: another command is at this cache: wait for it to end")
    store.write(to, content)


def _embedded(cache: Cache) -> list[str]:
    """The arrays that a pass fills; older caches have no hashes."""
    return [name for name in EMBEDDED_ARRAYS if cache.has(name)]


def _row_axis(name: str) -> int:
    return 0 if name in (STATUS, HASH) else 1  # after that of views


def _stored(cache: Cache, writer: RowWriter) -> Iterator[RowBatch]:
    """The rows that are there, written as they pass."""
    image_index = cache.caption_image()
    for start in range(0, len(cache), OLD_ROWS_AT_A_TIME):
        stop = min(start + OLD_ROWS_AT_A_TIME, len(cache))
        a, b = np.searchsorted(image_index, [start, stop]).tolist()
        batch = RowBatch(
            keys=cache.texts(KEY, start, stop),
            captions=cache.texts(TEXT, a, b),
            image_index=image_index[a:b] - start,
            languages=cache.languages(a, b),
            locators=cache.locators(start, stop),
            dropped={},
        )
        writer.append(batch)
        yield batch


def _are_in(digests: Digests, known: Digests) -> NDArray[np.bool_]:
    """Which digests are among those that are known, which are sorted."""
    at, found = np.searchsorted(known[:, 0], digests[:, 0]), np.zeros(len(digests), bool)
    while True:  # once, unless two digests have the same first half
        candidate = known[np.minimum(at, len(known) - 1)]
        same = (at < len(known)) & (candidate[:, 0] == digests[:, 0])
        if not (same & ~found).any():
            return found
        found |= same & (candidate[:, 1] == digests[:, 1])
        at += 1


def _stage_embedded(cache: Cache, staged: zarr.Group, num: int, chunk_rows: int) -> None:
    """Copy what a pass has filled into larger chunks; the rows to come are zeros, and thereby pending."""
    for name in _embedded(cache):
        old, axis = cache.array(name), _row_axis(name)
        shape, chunks = list(old.shape), list(old.chunks)
        shape[axis], chunks[axis] = num, chunk_rows
        new = create_array(staged, name, tuple(shape), tuple(chunks), str(old.dtype))
        head = (slice(None),) * axis
        for start in range(0, len(cache), chunk_rows):
            held = cache.read(name, (*head, slice(start, min(start + chunk_rows, len(cache)))))
            rows = slice(start, min(start + chunk_rows, num))
            block = np.zeros((*held.shape[:axis], rows.stop - start, *held.shape[axis + 1 :]), held.dtype)
            block[(*head, slice(held.shape[axis]))] = held
            new[(*head, rows)] = block  # whole chunks: nothing of them is read, which would be absent
