"""Verification of a cache: metadata, chunks against their checksums, counts, then the decoded values."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import ChunkId, DamagedCacheError, Fault
from ..format import (
    CAPTION_IMAGE,
    CHUNK_BYTES,
    EMB,
    FILE,
    KEY,
    NORM,
    STATUS,
    TEACHER_EMB,
    TEACHER_STATUS,
    TEACHER_TEXT,
    TEXT,
    TOKENS,
    Status,
)
from ..progress import OnProgress, Progress, ignore_progress
from ..storage.digests import digests_of, first_lines
from ..storage.feature_arrays import find_feature_faults
from ..storage.ragged_bytes import RaggedBytes
from ..storage.token_arrays import TOKEN_GROUP, find_token_faults
from .arrays import chunk_indices, parent_groups
from .cache import Cache
from .caption_sets import CaptionSet, captions_sha256, token_folder

ROWS_AT_A_TIME = 2**20
NORM_TOLERANCE = 2e-3  # of a unit vector in float16, each of whose values is rounded to 11 bits
_EMBEDDED = 1  # in `Status` and in `TextTargetStatus`
CheckName = Literal["stored", "images", "text targets"]


class CheckChunks(Protocol):
    """Checks of chunks that need no other chunk's, in this process or elsewhere."""

    def __call__(self, check: CheckName, chunks: Sequence[ChunkId], on_chunk: Callable[[], None]) -> list[Fault]:
        """The faults of some chunks, in the order of the chunks.

        Args:
            check: of `CHECKS`.
            chunks: to check.
            on_chunk: called after each chunk.
        """


def verify(
    cache: Cache, on_progress: OnProgress = ignore_progress, check_chunks: CheckChunks | None = None
) -> list[Fault]:
    """Verify a whole cache. Each check runs only if those before it found nothing that would mislead it.

    Args:
        cache: sealed, or planned: then the chunks that are done are checked.
        on_progress: called after each chunk.
        check_chunks: has chunks checked; by default they are, in this process.

    Returns:
        All faults; none if the cache is in order.

    Raises:
        CacheError: planning did not finish, so there is nothing to check.
    """
    cache.require_laid_out()
    arrays, faults = _open_arrays(cache)
    total, done = sum(array.nchunks for array in arrays.values()), 0
    if not faults:
        total += _num_value_chunks(cache)

    def advance() -> None:
        nonlocal done
        done += 1
        on_progress(Progress("verify", done, total))

    def check_here(check: CheckName, chunks: Sequence[ChunkId], on_chunk: Callable[[], None]) -> list[Fault]:
        found: list[Fault] = []
        for chunk in chunks:
            found += CHECKS[check](cache, chunk)
            on_chunk()
        return found

    if check_chunks is None:
        check_chunks = check_here
    stored = [(name, index) for name, array in arrays.items() for index in chunk_indices(array)]
    faults += check_chunks("stored", stored, advance)
    if cache.arrays.is_folder:
        for tokens, num_captions in _token_folders(cache):
            faults += find_token_faults(tokens, num_captions)
            faults += find_feature_faults(tokens, num_captions)
    faults = faults or list(_check_counts(cache))
    if faults:
        return faults
    faults += _check_texts_and_keys(cache)
    faults += check_chunks("images", _status_chunks(cache, STATUS), advance)
    if cache.info.source.has_teacher:
        faults += check_chunks("text targets", _status_chunks(cache, TEACHER_STATUS), advance)
    return [*faults, *_check_sets(cache)]


# Metadata


def _open_arrays(cache: Cache) -> tuple[dict[str, zarr.Array[Any]], list[Fault]]:
    """The arrays whose chunks can be checked, by name, and the faults of the metadata of the others."""
    faults: list[Fault] = []
    arrays: dict[str, zarr.Array[Any]] = {}
    token_groups = list(filter(TOKEN_GROUP.fullmatch, sorted(cache.arrays.stored_names(TOKENS))))
    # In a local folder, the arrays of tokens are checked by `find_token_faults`.
    token_arrays = (
        []
        if cache.arrays.is_folder
        else [f"{TOKENS}/{key}/{name}" for key in token_groups for name in ("ids", "offsets")]
    )
    try:
        in_sets = [name for info in cache.arrays.caption_sets() for name in info.array_names]
    except DamagedCacheError as error:
        faults.append(error.fault)
        in_sets = []
    names = [*cache.array_names, *in_sets, *token_arrays]
    for name in parent_groups([*names, f"{TOKENS}/"] if token_groups else names):
        try:
            cache.arrays.require_group(name)
        except DamagedCacheError as error:
            faults.append(error.fault)
    for name in names:
        try:
            arrays[name] = cache.arrays.array(name)
        except DamagedCacheError as error:
            faults.append(error.fault)
    return arrays, faults


def _check_counts(cache: Cache) -> Iterator[Fault]:
    """Compare the counts in the metadata with the statuses."""
    counts = {status.label: count for status, count in cache.count_status().items()}
    if cache.info.state == "sealed" and counts != cache.info.counts:
        message = f"zarr.json: counts are {cache.info.counts}, the images' statuses say {counts}"
        yield Fault(message, cache.arrays.remedy())


# Decoded values of a cache whose chunks match their checksums


def _check_texts_and_keys(cache: Cache) -> Iterator[Fault]:
    """Check offsets, UTF-8, unique keys and rows of captions."""
    names = [KEY, TEXT] + [TEACHER_TEXT] * cache.info.source.has_teacher + [FILE] * cache.arrays.has(FILE)
    faults = [fault for name in names for fault in _check_ragged(cache, name)]
    yield from faults or _check_keys(cache)
    yield from _check_caption_image(cache)


def _num_value_chunks(cache: Cache) -> int:
    """The number of chunks of embeddings whose values are checked."""
    num_images = len(cache.arrays.stored_chunks(f"{STATUS}/c"))
    return num_images + (cache.arrays.array(TEACHER_STATUS).cdata_shape[0] if cache.info.source.has_teacher else 0)


def _check_ragged(cache: Cache, name: str) -> Iterator[Fault]:
    """Check that the offsets of a ragged array ascend to the end of its bytes, and that its texts are UTF-8.

    At most one fault, the first.
    """
    remedy = cache.arrays.remedy()
    offsets, num_bytes = cache.arrays.array(f"{name}/offsets"), cache.arrays.array(f"{name}/bytes").shape[0]
    last = 0
    for start in range(0, offsets.shape[0], ROWS_AT_A_TIME):
        block = np.asarray(offsets[start : start + ROWS_AT_A_TIME])
        if (start == 0 and block[0] != 0) or (np.diff(block, prepend=last) < 0).any():
            yield Fault(f"{name}/offsets: not ascending from 0", remedy)
            return
        last = int(block[-1])
    if last != num_bytes:
        yield Fault(f"{name}/offsets: end at {last:,}, {name}/bytes has {num_bytes:,}", remedy)
        return
    for start, texts in _text_parts(cache, name):
        if not _is_utf8(texts):
            row = start + next(i for i, text in enumerate(texts.split()) if not _decodes(text))
            yield Fault(f"{name}/bytes: row {row} is no UTF-8", remedy, row=row)
            return


def _text_parts(cache: Cache, name: str) -> Iterator[tuple[int, RaggedBytes]]:
    """The texts of a ragged array in parts of about `CHUNK_BYTES`, each with the row of its first text."""
    offsets, raw = cache.arrays.array(f"{name}/offsets"), cache.arrays.array(f"{name}/bytes")
    num = offsets.shape[0] - 1
    for start in range(0, num, ROWS_AT_A_TIME):
        ends = np.asarray(offsets[start : min(start + ROWS_AT_A_TIME, num) + 1])
        row = 0
        while row < len(ends) - 1:
            stop = max(row + 1, int(np.searchsorted(ends, ends[row] + CHUNK_BYTES, side="right")) - 1)
            part = np.asarray(raw[int(ends[row]) : int(ends[stop])])
            yield start + row, RaggedBytes(part, ends[row : stop + 1] - ends[row])
            row = stop


def _is_utf8(texts: RaggedBytes) -> bool:
    """Whether the joined texts are UTF-8, and none begins inside a character."""
    begins = texts.offsets[:-1][np.diff(texts.offsets) > 0]
    return bool((texts.raw[begins] & 0xC0 != 0x80).all()) and _decodes(texts.raw.tobytes())


def _decodes(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_keys(cache: Cache) -> Iterator[Fault]:
    """Check that no two images have the same key."""
    first = first_lines(np.concatenate([digests_of(texts) for _, texts in _text_parts(cache, KEY)]))
    repeats = np.flatnonzero(first != np.arange(len(first)))
    if len(repeats):
        row = int(repeats[0])
        key = cache.keys(row, row + 1)[0]
        message = f"{KEY}: row {row} has the key of row {first[row]}, {key!r}{_and_more(len(repeats))}"
        yield Fault(message, cache.arrays.remedy(), row=row)


def _check_caption_image(cache: Cache) -> Iterator[Fault]:
    """Check that the captions' images are ascending rows of the cache."""
    caption_image, last = cache.arrays.array(CAPTION_IMAGE), 0
    for start in range(0, caption_image.shape[0], ROWS_AT_A_TIME):
        block = np.asarray(caption_image[start : start + ROWS_AT_A_TIME])
        if (np.diff(block, prepend=last) < 0).any() or block[-1] >= len(cache):
            yield Fault(f"{CAPTION_IMAGE}: not ascending rows of {len(cache)} images", cache.arrays.remedy())
            return
        last = int(block[-1])


def _check_sets(cache: Cache) -> Iterator[Fault]:
    """Check further caption sets: texts, images, languages, and all of it against the digest that is kept."""
    for info in cache.arrays.caption_sets():
        name, remedy = f"{info.path}/text", cache.arrays.remedy([(f"{info.path}/image", (0,))])
        faults = [replace(fault, remedy=remedy) for fault in _check_ragged(cache, name)]
        try:
            captions = CaptionSet(cache.arrays, info)
            images, codes = captions.caption_image(), captions.language_codes()
        except DamagedCacheError as error:
            faults.append(error.fault)
        yield from faults
        texts = (part for _, part in _text_parts(cache, name))
        if not faults and captions_sha256(texts, images, codes, info.languages) != info.sha256:
            yield Fault(
                f"{info.path}: not the captions that the metadata of set {info.name} have the sha256 of", remedy
            )


def _token_folders(cache: Cache) -> Iterator[tuple[Path, int]]:
    """Folders of tokens, each with the number of captions that they are of: the cache's own, and those of sets."""
    tokens = cache.arrays.folder / TOKENS
    yield tokens, cache.info.num_captions
    with suppress(DamagedCacheError):  # a fault that is found elsewhere
        yield from ((tokens / token_folder(info), info.num_captions) for info in cache.arrays.caption_sets())


# Chunks by themselves


def _status_chunks(cache: Cache, name: str) -> list[ChunkId]:
    """The stored chunks of an array of statuses, ascending."""
    return [(name, (chunk,)) for chunk in sorted(cache.arrays.stored_chunks(f"{name}/c"))]


def _check_stored(cache: Cache, chunk: ChunkId) -> Iterator[Fault]:
    """Check that a chunk is stored, and matches its checksum."""
    if problem := cache.arrays.chunk_problem(chunk):
        yield Fault(f"{cache.arrays.chunk_key(chunk)}: {problem}", cache.arrays.remedy([chunk]), chunk)


def _check_images(cache: Cache, status_chunk: ChunkId) -> Iterator[Fault]:
    """Check the statuses of a chunk of images, and its embeddings and norms against them."""
    emb_array, norm_array, (_, (chunk,)) = cache.arrays.array(EMB), cache.arrays.array(NORM), status_chunk
    rows = cache.chunk_slice(chunk)
    rows = slice(rows.start, cache.first_pending(chunk) or rows.stop)  # a pass may be writing the rest
    status = cache.status(chunk)[: rows.stop - rows.start]
    embedded = status == Status.EMBEDDED
    unknown = ~np.isin(status, [code for code in Status if code != Status.PENDING])
    yield from _row_faults(cache, status_chunk, rows.start, unknown, "unknown status")
    plain: NDArray[np.float32] = np.zeros((0, 0), np.float32)
    for view in range(cache.info.num_views):
        emb = np.asarray(emb_array[view, rows]).astype(np.float32)
        norm = np.asarray(norm_array[view, rows])
        emb_chunk, norm_chunk = (EMB, (view, chunk, 0)), (NORM, (view, chunk))
        yield from _check_emb(cache, emb_chunk, rows.start, emb, embedded)
        # Comparisons with NaN are false, infinity must be excluded.
        is_valid = (norm > 0 if view == 0 else norm >= 0) & np.isfinite(norm)
        wrong = np.where(embedded, ~is_valid, norm != 0)
        problem = "not a positive number where the image is embedded"
        yield from _row_faults(cache, norm_chunk, rows.start, wrong, problem)
        if view == 0:
            plain = emb
        else:
            wrong = embedded & (norm == 0) & (emb != plain).any(1)
            problem = "norm 0, but not the plain view's embedding"
            yield from _row_faults(cache, emb_chunk, rows.start, wrong, problem)


def _check_text_targets(cache: Cache, status_chunk: ChunkId) -> Iterator[Fault]:
    """Check a chunk of the text teacher's embeddings against their statuses."""
    status_array, emb_array = cache.arrays.array(TEACHER_STATUS), cache.arrays.array(TEACHER_EMB)
    size, (_, (chunk,)) = status_array.chunks[0], status_chunk
    start = chunk * size
    emb = np.asarray(emb_array[0, start : start + size]).astype(np.float32)
    embedded = np.asarray(status_array[start : start + size]) == _EMBEDDED
    yield from _check_emb(cache, (TEACHER_EMB, (0, chunk, 0)), start, emb, embedded)


CHECKS: dict[CheckName, Callable[[Cache, ChunkId], Iterator[Fault]]] = {
    "stored": _check_stored,
    "images": _check_images,
    "text targets": _check_text_targets,
}
"""Checks of one chunk: that it is stored, or what it says of images or text targets, given its statuses."""


def _check_emb(
    cache: Cache, chunk: ChunkId, start: int, emb: NDArray[np.float32], embedded: NDArray[np.bool_]
) -> Iterator[Fault]:
    """Check that rows `[R, D]` have unit norm where embedded, and are zeros elsewhere."""
    is_unit = np.abs(np.linalg.norm(emb, axis=1) - 1) <= NORM_TOLERANCE
    yield from _row_faults(cache, chunk, start, embedded & ~is_unit, "embedded, but not of unit norm")
    yield from _row_faults(cache, chunk, start, ~embedded & (emb != 0).any(1), "not embedded, but not zeros")


def _row_faults(cache: Cache, chunk: ChunkId, start: int, wrong: NDArray[np.bool_], problem: str) -> Iterator[Fault]:
    """One fault for all wrong rows `[R]` of a chunk that begins at row `start`; none if no row is wrong."""
    rows = np.flatnonzero(wrong)
    if len(rows):
        row = start + int(rows[0])
        message = f"{cache.arrays.chunk_key(chunk)}: row {row}{_and_more(len(rows))}: {problem}"
        yield Fault(message, cache.arrays.remedy([chunk]), chunk, row)


def _and_more(num: int) -> str:
    return f" and {num - 1:,} more" if num > 1 else ""
