"""Further sources for a sealed cache: their new pictures become rows after the old ones, and only they are embedded.

The planned arrays, old rows and new, are staged whole below `append/`, while the cache stays as it is. Then one write
of the metadata says "appending", and what is staged takes its place; each step of that can be done again, so whoever
finds the mark finishes it. Embeddings stay where they are, and their arrays get longer, unless their chunks are far too
small for the new size. N pictures before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from .columns import ColumnWriter, Digests, digests_of
from .embed import write_info
from .errors import CacheError
from .format import (
    CAPTION_IMAGE,
    EMBEDDED_ARRAYS,
    FILE,
    KEY,
    LANGUAGE,
    LOCATOR,
    STATUS,
    TEXT,
    TOKENS,
    SourceInfo,
    plan_chunk_rows,
)
from .ragged import RaggedReader, RaggedWriter, Texts, create_array, open_array
from .rows import Batch
from .store import Cache

STAGED = "append"
KNOWN = "--append"  # the reason why pictures that are there already are left out
FEW = 4  # chunks that are so many times smaller than a plan's are made anew
OLD_ROWS_AT_A_TIME = 2**18


def plan_append(
    cache: Cache,
    batches: Iterable[Batch],
    source: SourceInfo,
    *,
    files: Callable[[], Sequence[str]] = list,
    left_out: Counter[str],
    on_progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Give a sealed cache rows for the pictures of a source that it does not have.

    Args:
        cache: sealed, without a teacher, open for writing.
        batches: of the source. Rows of pictures that the cache has are left out.
        source: what it is; its limit counts new pictures.
        files: as of `plan_cache`.
        left_out: likewise; pictures that are known are counted here, too.
        on_progress: called with the number of rows read.

    Returns:
        How many pictures are new; if none is, the cache is as it was.
    """
    assert cache.info.state == "sealed"
    finish_append(cache)
    info, N = cache.info, len(cache)
    staged = cache.root.create_group(STAGED)
    limit = None if source.limit is None else N + source.limit
    writer, done = ColumnWriter(staged, teacher=False, limit=limit), 0
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
    if num == N:
        finish_append(cache)
        return 0
    if names := [*old_files, *files()]:
        ragged = RaggedWriter(staged, FILE)
        ragged.append(Texts.of([name.encode() for name in names]))
        ragged.close()
    chunk_rows = plan_chunk_rows(num, info.encoder.dim, info.batch_size)
    if chunk_rows >= FEW * info.chunk_rows:
        _stage_embedded(cache, staged, num, chunk_rows)
    else:
        chunk_rows = info.chunk_rows
    dropped, out = (
        dict(Counter(a) + Counter(b)) for a, b in ((info.dropped_captions, writer.dropped), (info.left_out, left_out))
    )
    appending = replace(
        info,
        state="appending",
        appended=[*info.appended, replace(source, first_row=N)],
        num_pictures=num,
        num_captions=num_captions,
        chunk_rows=chunk_rows,
        dropped_captions=dropped,
        left_out=out,
        languages=list(writer.codes),
        counts={},
    )
    write_info(cache, appending)  # from here on what is staged is what counts
    finish_append(cache)
    return num - N


def finish_append(cache: Cache) -> None:
    """Put what is staged into its place if the metadata says so, else take away what a killed plan left."""
    store = cache.root.store
    if cache.info.state == "appending":
        staged, N = cache.root[STAGED], cache.info.num_pictures
        assert isinstance(staged, zarr.Group)
        for name in (KEY, TEXT, LOCATOR, FILE, LANGUAGE, CAPTION_IMAGE, *EMBEDDED_ARRAYS):
            if name in staged:
                sync(store.delete_dir(name))
        sync(_copy(cache, STAGED))
        for name in EMBEDDED_ARRAYS:
            array, axis = open_array(cache.root, name), 0 if name == STATUS else 1
            array.resize((*array.shape[:axis], N, *array.shape[axis + 1 :]))
        sync(store.delete_dir(TOKENS))  # of the captions before; training writes them again
        write_info(cache, replace(cache.info, state="planned"))
    cache.forget_arrays()
    sync(store.delete_dir(STAGED))


def _stored(cache: Cache, writer: ColumnWriter) -> Iterator[Batch]:
    """The rows that are there, written as they pass."""
    owners, keys, texts = cache.caption_image(), RaggedReader(cache.root, KEY), RaggedReader(cache.root, TEXT)
    for start in range(0, len(cache), OLD_ROWS_AT_A_TIME):
        stop = min(start + OLD_ROWS_AT_A_TIME, len(cache))
        a, b = np.searchsorted(owners, [start, stop]).tolist()
        batch = Batch(
            keys=keys.texts(start, stop),
            captions=texts.texts(a, b),
            owners=owners[a:b] - start,
            languages=cache.languages(a, b),
            locators=cache.locators(start, stop),
            dropped=Counter(),
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
    """Copy embeddings, norms and statuses into larger chunks; the rows to come are pending."""
    for name in EMBEDDED_ARRAYS:
        old, axis = cache.array(name), 0 if name == STATUS else 1
        shape, chunks = list(old.shape), list(old.chunks)
        shape[axis], chunks[axis] = num, chunk_rows
        new = create_array(staged, name, tuple(shape), tuple(chunks), str(old.dtype))
        for start in range(0, len(cache), chunk_rows):
            rows = (*[slice(None)] * axis, slice(start, min(start + chunk_rows, len(cache))))
            new[rows] = cache._read(name, rows)  # an absent chunk is an error there, not zeros


async def _copy(cache: Cache, folder: str) -> None:
    """Copy all that lies below a folder of the store to the top, but for the folder's own metadata."""
    store = cache.root.store
    async for key in store.list_prefix(f"{folder}/"):
        if key != f"{folder}/zarr.json":
            value = await store.get(key, default_buffer_prototype())
            if value is None:
                raise CacheError(f"{cache.path}: {key} vanished while it was copied: run the same command again")
            await store.set(key.removeprefix(f"{folder}/"), value)
