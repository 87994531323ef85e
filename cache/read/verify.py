"""Checking a cache: every chunk against its checksum, counts and shapes against each other, then the contents."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import (
    CAPTION_IMAGE,
    CHUNK_BYTES,
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
    Status,
)
from ..storage.digests import digests_of, first_lines
from ..storage.ragged import RaggedBytes
from ..storage.token_arrays import TOKEN_GROUP, find_token_faults
from .arrays import chunk_indices, chunk_name, groups_above
from .cache import Cache

ROWS_AT_A_TIME = 2**20
LENGTH_TOLERANCE = 2e-3  # of a unit vector in float16: each value is rounded to 11 bits
_EMBEDDED = 1  # also of `TextTargetStatus`
ChunkId = tuple[str, tuple[int, ...]]
"""The name of an array, and the index of a chunk of it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong.

    Attributes:
        what: one line that names the chunk's file or the rows, and what to do.
        chunk: that a pass can embed again to mend it; None if none can.
    """

    what: str
    chunk: ChunkId | None = None

    def __str__(self) -> str:
        return self.what


def find_faults_in_contents(cache: Cache, on_step: Callable[[], None] = lambda: None) -> Iterator[Fault]:
    """Check what a cache holds, once its chunks match their checksums.

    Args:
        cache: planned or sealed; of a planned one, the chunks that are done.
        on_step: called after each chunk of embeddings, `num_steps` times.
    """
    names = [KEY, TEXT] + [TEACHER_TEXT] * cache.info.source.has_teacher + [FILE] * cache.has(FILE)
    faults = [Fault(what) for name in names for what in _ragged_faults(cache, name)]
    yield from faults or map(Fault, _repeated_keys(cache))
    yield from map(Fault, _owner_faults(cache))
    yield from _image_faults(cache, on_step)
    if cache.info.source.has_teacher:
        yield from _teacher_faults(cache, on_step)


def num_steps(cache: Cache) -> int:
    """How often `find_faults_in_contents` calls `on_step`."""
    taught = cache.array(TEACHER_STATUS).cdata_shape[0] if cache.info.source.has_teacher else 0
    return len(cache.stored_numbers(f"{STATUS}/c")) + taught


def texts_in_parts(cache: Cache, name: str) -> Iterator[tuple[int, RaggedBytes]]:
    """The texts of a ragged array in parts of about a chunk's bytes, each with the row of its first."""
    offsets, raw = cache.array(f"{name}/offsets"), cache.array(f"{name}/bytes")
    num = offsets.shape[0] - 1
    for start in range(0, num, ROWS_AT_A_TIME):
        ends = np.asarray(offsets[start : min(start + ROWS_AT_A_TIME, num) + 1])
        row = 0
        while row < len(ends) - 1:
            stop = max(row + 1, int(np.searchsorted(ends, ends[row] + CHUNK_BYTES, side="right")) - 1)
            yield (
                start + row,
                RaggedBytes(np.asarray(raw[int(ends[row]) : int(ends[stop])]), ends[row : stop + 1] - ends[row]),
            )
            row = stop


def _ragged_faults(cache: Cache, name: str) -> Iterator[str]:
    """Offsets that do not lead through the bytes, then the first text that is no UTF-8."""
    offsets, total = cache.array(f"{name}/offsets"), cache.array(f"{name}/bytes").shape[0]
    last = 0
    for start in range(0, offsets.shape[0], ROWS_AT_A_TIME):
        block = np.asarray(offsets[start : start + ROWS_AT_A_TIME])
        if (start == 0 and block[0] != 0) or (np.diff(block, prepend=last) < 0).any():
            yield f"{name}/offsets: not ascending from 0: {cache.remedy([])}"
            return
        last = int(block[-1])
    if last != total:
        yield f"{name}/offsets: end at {last:,}, {name}/bytes has {total:,}: {cache.remedy([])}"
        return
    for start, texts in texts_in_parts(cache, name):
        if not _is_utf8(texts):
            row = next(i for i, text in enumerate(texts.split()) if not _decodes(text))
            yield f"{name}/bytes: row {start + row} is no UTF-8: {cache.remedy([])}"
            return


def _is_utf8(texts: RaggedBytes) -> bool:
    """Whether all together are, and none begins within a character."""
    begins = texts.offsets[:-1][np.diff(texts.offsets) > 0]
    return bool((texts.raw[begins] & 0xC0 != 0x80).all()) and _decodes(texts.raw.tobytes())


def _decodes(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _repeated_keys(cache: Cache) -> Iterator[str]:
    first = first_lines(np.concatenate([digests_of(texts) for _, texts in texts_in_parts(cache, KEY)]))
    repeats = np.flatnonzero(first != np.arange(len(first)))
    if len(repeats):
        row = int(repeats[0])
        yield (
            f"{KEY}: row {row} has the key of row {first[row]}, {cache.keys(row, row + 1)[0]!r}"
            f"{_and_more(len(repeats))}: {cache.remedy([])}"
        )


def _owner_faults(cache: Cache) -> Iterator[str]:
    image_index, num, last = cache.array(CAPTION_IMAGE), len(cache), 0
    for start in range(0, image_index.shape[0], ROWS_AT_A_TIME):
        block = np.asarray(image_index[start : start + ROWS_AT_A_TIME])
        if (np.diff(block, prepend=last) < 0).any() or block[-1] >= num:
            yield f"{CAPTION_IMAGE}: not ascending rows of {num} images: {cache.remedy([])}"
            return
        last = int(block[-1])


def _image_faults(cache: Cache, on_step: Callable[[], None]) -> Iterator[Fault]:
    emb, norm = cache.array(EMB), cache.array(NORM)
    for chunk in sorted(cache.stored_numbers(f"{STATUS}/c")):
        rows = cache.chunk_slice(chunk)
        rows = slice(rows.start, cache.first_pending(chunk) or rows.stop)  # what follows may be half done
        status = cache.status(chunk)[: rows.stop - rows.start]
        embedded = status == Status.EMBEDDED
        unknown = ~np.isin(status, [code for code in Status if code != Status.PENDING])
        yield from _faults(cache, (STATUS, (chunk,)), rows.start, unknown, "a status that is none")
        plain: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        for view in range(cache.info.num_views):
            found = np.asarray(emb[view, rows]).astype(np.float32)
            lengths = np.asarray(norm[view, rows])
            yield from _emb_faults(cache, (EMB, (view, chunk, 0)), rows.start, found, embedded)
            # NaN fulfils no comparison.
            right = (lengths > 0 if view == 0 else lengths >= 0) & np.isfinite(lengths)
            wrong = np.where(embedded, ~right, lengths != 0)
            yield from _faults(
                cache, (NORM, (view, chunk)), rows.start, wrong, "not a positive number where the image is embedded"
            )
            if view == 0:
                plain = found
            else:
                wrong = embedded & (lengths == 0) & (found != plain).any(1)
                yield from _faults(
                    cache, (EMB, (view, chunk, 0)), rows.start, wrong, "norm 0, but not the plain view's embedding"
                )
        on_step()


def _teacher_faults(cache: Cache, on_step: Callable[[], None]) -> Iterator[Fault]:
    status, emb = cache.array(TEACHER_STATUS), cache.array(TEACHER_EMB)
    size = status.chunks[0]
    for chunk in sorted(cache.stored_numbers(f"{TEACHER_STATUS}/c")):
        start = chunk * size
        found = np.asarray(emb[0, start : start + size]).astype(np.float32)
        embedded = np.asarray(status[start : start + size]) == _EMBEDDED
        yield from _emb_faults(cache, (TEACHER_EMB, (0, chunk, 0)), start, found, embedded)
        on_step()


def _emb_faults(
    cache: Cache, chunk: ChunkId, start: int, emb: NDArray[np.float32], embedded: NDArray[np.bool_]
) -> Iterator[Fault]:
    """Rows `[R, D]` that are not of unit norm where embedded, or not zero elsewhere."""
    near_one = np.abs(np.linalg.norm(emb, axis=1) - 1) <= LENGTH_TOLERANCE
    yield from _faults(cache, chunk, start, embedded & ~near_one, "embedded, but not of unit norm")
    yield from _faults(cache, chunk, start, ~embedded & (emb != 0).any(1), "not embedded, but not zeros")


def _faults(cache: Cache, chunk: ChunkId, start: int, wrong: NDArray[np.bool_], what: str) -> Iterator[Fault]:
    rows = np.flatnonzero(wrong)
    if len(rows):
        file = cache.chunk_file(chunk)
        yield Fault(f"{file}: row {start + rows[0]}{_and_more(len(rows))}: {what}: {cache.remedy([chunk])}", chunk)


def _and_more(num: int) -> str:
    return f" and {num - 1:,} more" if num > 1 else ""


MAX_CHUNKS = 10_000_000  # of an array: of 16 MB each 160 TB


def verify(cache: Cache, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[Fault]:
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


def _shape_faults(cache: Cache, arrays: Mapping[str, zarr.Array[Any]]) -> dict[str, str]:
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


def _count_faults(cache: Cache) -> Iterator[str]:
    """Counts that the statuses do not bear out."""
    counts = {status.label: count for status, count in cache.count_status().items()}
    if cache.info.state == "sealed" and counts != cache.info.counts:
        yield f"zarr.json: counts are {cache.info.counts}, the images' statuses say {counts}: {cache.remedy([])}"
