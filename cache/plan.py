"""Planning: from a manifest to an empty cache whose rows and order are fixed before the first picture is opened."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from .errors import CacheError
from .files import MARK, PARTIAL
from .format import ATTRIBUTE, CAPTION_IMAGE, EMB, KEY, NORM, STATUS, TEACHER_TEXT, TEXT, CacheInfo, plan_chunk_rows
from .location import Location
from .manifest import ManifestRow
from .pictures import require_image_root
from .ragged import RaggedReader, RaggedWriter, StreamedArray, create_array, open_array
from .store import Cache
from .stores import CacheStore, store_at
from .teacher import align, make_room_for_teacher

ROWS_AT_A_TIME = 8192


def is_planned(path: Location) -> bool:
    """Whether a planned cache stands at `path`; nothing, or what an interrupted plan left, is False.

    Raises:
        CacheError: something else stands there, which planning must not replace; or a store that refuses.
    """
    names = store_at(path, read_only=True).names("")
    if MARK in names:
        return Cache(path).info.state != "planning"
    if not all(name.endswith(PARTIAL) for name in names):
        raise CacheError(f"{path} exists and is no cache: choose another -o")
    return False


class _Pictures:
    """The pictures seen so far: merges the lines of one picture, wherever they stand in the manifest.

    Holds a 16-byte digest a picture, not its key, so memory does not grow with the length of paths: 130 MB a million.
    """

    def __init__(self, limit: int | None) -> None:
        self._rows: dict[bytes, int] = {}
        self._limit = limit

    def row(self, key: bytes) -> tuple[int | None, bool]:
        """The row of a picture and whether it is new; row None past the limit."""
        digest = hashlib.blake2b(key, digest_size=16).digest()
        row = self._rows.get(digest)
        if row is not None:
            return row, False
        if self._limit is not None and len(self._rows) >= self._limit:
            return None, False
        self._rows[digest] = len(self._rows)
        return len(self._rows) - 1, True

    def __len__(self) -> int:
        return len(self._rows)


def plan_cache(
    path: Location,
    rows: Iterable[ManifestRow],
    info: CacheInfo,
    *,
    chunk_rows: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> CacheInfo:
    """Lay out a cache: keys, captions and empty embedding arrays.

    A plan that is cut short leaves the state "planning" behind and is simply planned anew; one that fails leaves
    nothing.

    Args:
        path: where the cache goes; absent, or left by an interrupted plan.
        rows: the manifest's rows, in order. Lines with the same key are one picture. With a limit, reading stops
            after the first 8,192 lines that bring nothing for the pictures within it.
        info: encoder, source and batch size; counts and state are filled in here.
        chunk_rows: rows of an embedding chunk; by default about 16 MB, less in a small cache.
        on_progress: called with the number of manifest lines read.

    Returns:
        The metadata as written, in state "planned".

    Raises:
        CacheError: no image root, no pictures, a manifest that is not readable (from `rows`), or no room to write.
    """
    if is_planned(path):
        raise CacheError(f"{path} is planned already")
    if chunk_rows is not None and chunk_rows % info.batch_size:
        raise CacheError(f"chunk rows ({chunk_rows}) must be a multiple of the batch size ({info.batch_size})")
    require_image_root(Path(info.source.image_root))
    store = store_at(path, read_only=False)
    try:
        return _lay_out(store, rows, info, chunk_rows, on_progress)
    except CacheError:
        with suppress(CacheError):  # an unfinished plan is no harm
            store.empty(for_good=True)
        raise


def _lay_out(
    store: CacheStore,
    rows: Iterable[ManifestRow],
    info: CacheInfo,
    chunk_rows: int | None,
    on_progress: Callable[[int], None],
) -> CacheInfo:
    store.empty()
    # Metadata and attributes in one write: a kill leaves a folder that is recognised as an unfinished plan.
    root = zarr.create_group(
        store,
        zarr_format=3,
        attributes={ATTRIBUTE: replace(info, state="planning").to_attributes()},
    )

    pictures = _Pictures(info.source.limit)
    keys = RaggedWriter(root, KEY)
    texts = RaggedWriter(root, TEXT)
    teacher = RaggedWriter(root, TEACHER_TEXT) if info.source.has_teacher else None
    owners = StreamedArray(root, CAPTION_IMAGE, "int64")
    dropped = {"empty": 0, "not unicode": 0}
    done, last_owner, ascending = 0, 0, True
    for batch in _batches(rows):
        new_keys, new_texts, new_owners, new_lessons = [], [], [], []
        for manifest_row in batch:
            key = manifest_row.key.encode()
            row, is_new = pictures.row(key)
            if row is None:
                continue
            if is_new:
                new_keys.append(key)
            lessons = align(manifest_row.captions, manifest_row.translations)
            for caption, lesson in zip(manifest_row.captions, lessons, strict=True):
                text = _encoded(caption, dropped)
                if text is not None:
                    new_texts.append(text)
                    new_owners.append(row)
                    new_lessons.append(lesson.encode(errors="replace"))
        keys.append(new_keys)
        texts.append(new_texts)
        if teacher:
            teacher.append(new_lessons)
        batch_owners = np.asarray(new_owners, np.int64)
        owners.append(batch_owners)
        if len(batch_owners):
            ascending = ascending and last_owner <= batch_owners[0] and bool((np.diff(batch_owners) >= 0).all())
            last_owner = int(batch_owners[-1])
        done += len(batch)
        on_progress(done)
        if info.source.limit is not None and len(pictures) >= info.source.limit and not new_texts:
            break  # the limit is reached and this batch brought nothing more for its pictures
    for writer in (keys, texts, owners):
        writer.close()
    if teacher:
        teacher.close()
    if not len(pictures):
        raise CacheError(f"{info.source.path}: no pictures in it")
    if not ascending:
        _sort_captions(root, (TEXT, TEACHER_TEXT) if teacher else (TEXT,))

    num, dim, views = len(pictures), info.encoder.dim, info.num_views
    chunk_rows = chunk_rows or plan_chunk_rows(num, dim, info.batch_size)
    create_array(root, EMB, (views, num, dim), (1, chunk_rows, dim), "float16")
    create_array(root, NORM, (views, num), (1, chunk_rows), "float32")
    create_array(root, STATUS, (num,), (chunk_rows,), "uint8")
    if teacher:
        make_room_for_teacher(root, info, len(RaggedReader(root, TEXT)))
    planned = replace(
        info,
        state="planned",
        num_pictures=num,
        num_captions=len(RaggedReader(root, TEXT)),
        chunk_rows=chunk_rows,
        dropped_captions={reason: count for reason, count in dropped.items() if count},
    )
    root.attrs[ATTRIBUTE] = planned.to_attributes()  # last: a plan without it never passes for whole
    return planned


def _batches(rows: Iterable[ManifestRow]) -> Iterator[list[ManifestRow]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, ROWS_AT_A_TIME)):
        yield batch


def _encoded(caption: str, dropped: dict[str, int]) -> bytes | None:
    if not caption.strip():
        dropped["empty"] += 1
        return None
    try:
        return caption.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, from JSON's \\ud83d
        dropped["not unicode"] += 1
        return None


def _sort_captions(root: zarr.Group, names: Sequence[str]) -> None:
    """Bring the captions of one picture together, stably, where the manifest had them apart."""
    owners = np.asarray(open_array(root, CAPTION_IMAGE)[:])
    order = np.argsort(owners, kind="stable")
    for name in names:
        # All captions in memory, but as two arrays: objects of Python would take three times as much.
        raw: NDArray[np.uint8] = np.asarray(open_array(root, f"{name}/bytes")[:])
        offsets = np.asarray(open_array(root, f"{name}/offsets")[:])
        del root[name]
        writer = RaggedWriter(root, name)
        for start in range(0, len(order), ROWS_AT_A_TIME):
            batch = order[start : start + ROWS_AT_A_TIME]
            writer.append([raw[a:b].tobytes() for a, b in zip(offsets[batch], offsets[batch + 1], strict=True)])
        writer.close()
    del root[CAPTION_IMAGE]
    sorted_owners = StreamedArray(root, CAPTION_IMAGE, "int64")
    sorted_owners.append(owners[order])
    sorted_owners.close()
