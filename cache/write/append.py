"""Append: new images of a further source become rows after the old ones of a sealed cache; only they are embedded.

The planned arrays, with old and new rows, are staged below `append/`, while the cache stays as it is. Then one write of
the metadata sets the state "appending", and the staged arrays replace the old ones. Each of these steps can be
repeated, so the next command that finds this state finishes the job. Embeddings stay where they are and their arrays
are resized, unless their chunks are far too small for the new size. N images before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import zarr

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
from ..storage.digests import DigestIndex, digests_of
from ..storage.encoding import create_array
from ..storage.local import ZARR_JSON
from ..storage.open import CacheStore
from .plan import write_files
from .row_writer import RowWriter

KNOWN = "--append"  # counts rows left out because the cache has their images already
RECHUNK_FACTOR = 4  # chunks so many times smaller than a new plan's are made larger
COPIED_ROWS = 2**18  # of the old cache, whose keys and captions are in memory at once


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
    """Plan rows of a sealed cache for the images of a source that it does not have.

    Args:
        cache: sealed, without a teacher, open for writing.
        batches: of the source's rows. Rows of images that the cache has are left out.
        source: its description; its limit counts new images.
        files: as in `plan_cache`.
        left_out: as in `plan_cache`; rows of known images are counted here too.
        rechunked: whether chunks that are far too small for the new size are made larger.
        on_progress: called with the number of rows read.

    Returns:
        The number of new images; without any, the cache stays sealed, and records the source.

    Raises:
        CacheError: an array of the cache cannot be opened, the disk is full, or the source cannot be read.
    """
    assert cache.info.state == "sealed"
    finish_append(cache)
    cache.require_arrays()  # now: once the state is "appending" there is no way back
    info, N = cache.info, len(cache)
    staged = cache.arrays.root.create_group(STAGED)
    limit = None if source.limit is None else N + source.limit
    writer, done = RowWriter(staged, has_text_targets=False, limit=limit), 0
    old_digests = [digests_of(batch.keys) for batch in _copy_old_rows(cache, writer)]
    known = DigestIndex(np.concatenate(old_digests))
    old_files = cache.files()
    for batch in batches:
        done += len(batch)
        is_new = known.rows_of(digests_of(batch.keys)) < 0
        left_out[KNOWN] += int(np.count_nonzero(~is_new))
        new = batch if is_new.all() else batch.take(is_new)
        if new.locators is not None:
            new = replace(new, locators=new.locators + np.array([len(old_files), 0, 0]))
        on_progress(done)
        if not writer.append(new) and len(new):
            break
    num, num_captions = writer.close()
    sources = [*info.appended, replace(source, first_row=N)]
    all_left_out = dict(Counter(info.left_out) + Counter(left_out))
    if num == N:
        cache.arrays.write_info(replace(info, appended=sources, left_out=all_left_out))
        finish_append(cache)
        return 0
    file_arrays = write_files(staged, [*old_files, *files()])
    chunk_rows = plan_chunk_rows(num, info.encoder.dim, info.batch_size)
    if rechunked and chunk_rows >= RECHUNK_FACTOR * info.chunk_rows:
        _stage_embedded(cache, staged, num, chunk_rows)
    else:
        chunk_rows = info.chunk_rows
    appending = replace(
        info,
        state="appending",
        appended=sources,
        num_images=num,
        num_captions=num_captions,
        chunk_rows=chunk_rows,
        dropped_captions=dict(Counter(info.dropped_captions) + writer.dropped),
        left_out=all_left_out,
        languages=list(writer.codes),
        counts={},
        num_duplicates=None,
        arrays=[*_embedded_arrays(cache), *writer.names, *file_arrays],
    )
    cache.arrays.write_info(appending)  # from here on the staged arrays are the valid ones
    finish_append(cache)
    return num - N


def finish_append(cache: Cache) -> None:
    """Finish an append in state "appending"; in any other state, delete what a killed plan staged.

    Args:
        cache: open for writing, by this process alone.
    """
    store = cache.arrays.store
    if cache.info.state == "appending":
        if ZARR_JSON in store.names(STAGED):
            _replace_arrays(cache)
            store.delete_file(f"{STAGED}/{ZARR_JSON}")  # marks that all arrays are replaced
        store.delete_below(STAGED)
        store.delete_below(TOKENS)  # of the old captions; training writes them again
        cache.arrays.write_info(replace(cache.info, state="planned"))
        cache.arrays.refresh()
    elif STAGED in store.names(""):
        store.delete_below(STAGED)


def _replace_arrays(cache: Cache) -> None:
    """Copy the staged arrays over the old ones, and resize those that keep their chunks."""
    store, num = cache.arrays.store, cache.info.num_images
    for name in (KEY, TEXT, LOCATOR, FILE, LANGUAGE, CAPTION_IMAGE, *EMBEDDED_ARRAYS):
        if ZARR_JSON in store.names(f"{STAGED}/{name}"):
            store.delete_below(name)
    for key in store.keys_below(STAGED):
        if key != f"{STAGED}/{ZARR_JSON}":
            _copy(store, key, key.removeprefix(f"{STAGED}/"))
    for name in _embedded_arrays(cache):
        array, axis = cache.arrays.reopen(name), _row_axis(name)
        array.resize((*array.shape[:axis], num, *array.shape[axis + 1 :]))


def _copy(store: CacheStore, key: str, to: str) -> None:
    content = store.read(key)
    if content is None:
        raise CacheError(f"{key} vanished while it was copied: another command writes this cache: wait for it to end")
    store.write(to, content)


def _embedded_arrays(cache: Cache) -> list[str]:
    """Names of the arrays that a pass fills; older caches have no hashes."""
    return [name for name in EMBEDDED_ARRAYS if cache.arrays.has(name)]


def _row_axis(name: str) -> int:
    return 0 if name in (STATUS, HASH) else 1  # after the axis of views


def _copy_old_rows(cache: Cache, writer: RowWriter) -> Iterator[RowBatch]:
    """Write the rows of the cache, batch by batch; yields each batch once it is written."""
    image_index = cache.caption_image()
    for start in range(0, len(cache), COPIED_ROWS):
        stop = min(start + COPIED_ROWS, len(cache))
        a, b = np.searchsorted(image_index, [start, stop]).tolist()
        batch = RowBatch(
            keys=cache.arrays.read_ragged(KEY, start, stop),
            captions=cache.arrays.read_ragged(TEXT, a, b),
            image_index=image_index[a:b] - start,
            languages=cache.languages(a, b),
            locators=cache.locators(start, stop),
            dropped={},
        )
        writer.append(batch)
        yield batch


def _stage_embedded(cache: Cache, staged: zarr.Group, num: int, chunk_rows: int) -> None:
    """Copy the arrays that a pass fills into larger chunks; the new rows are zeros, which means pending."""
    for name in _embedded_arrays(cache):
        old, axis = cache.arrays.array(name), _row_axis(name)
        shape, chunks = list(old.shape), list(old.chunks)
        shape[axis], chunks[axis] = num, chunk_rows
        new = create_array(staged, name, tuple(shape), tuple(chunks), str(old.dtype))
        head = (slice(None),) * axis
        for start in range(0, len(cache), chunk_rows):
            values = cache.arrays.read(name, (*head, slice(start, min(start + chunk_rows, len(cache)))))
            rows = slice(start, min(start + chunk_rows, num))
            block = np.zeros((*values.shape[:axis], rows.stop - start, *values.shape[axis + 1 :]), values.dtype)
            block[(*head, slice(values.shape[axis]))] = values
            new[(*head, rows)] = block  # a whole chunk, so that zarr does not read it first: it is absent
