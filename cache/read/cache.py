"""A cache that exists: its metadata, embeddings, captions and keys. `cache/write` makes and extends caches."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError, DamagedCacheError, Fault
from ..format import (
    CAPTION_IMAGE,
    EMB,
    FILE,
    HASH,
    KEY,
    LANGUAGE,
    LOCATOR,
    NORM,
    OPTIONAL_ARRAYS,
    OWN_CAPTIONS,
    PLANNED_ARRAYS,
    STATUS,
    TEACHER_ARRAYS,
    TEACHER_EMB,
    TEACHER_STATUS,
    TEACHER_TEXT,
    TEXT,
    TOKENS,
    CacheInfo,
    CaptionSetInfo,
    Status,
)
from ..location import Location
from ..storage.mmap import MmapRows
from .arrays import CheckedArrays, chunk_key, parent_groups

ROWS_AT_A_TIME = 8192


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that was not embedded, and why."""

    row: int
    key: str
    status: Status


class Cache:
    """A cache of N images with M captions: V views of each image as embeddings of D features.

    ::

        cache = Cache("cache.zarr")
        cache.image_emb().shape  # (6000, 512)
        cache.captions(0, 5)  # the first five

    Every method that reads raises `DamagedCacheError` if a chunk that it reads is absent or damaged.

    Attributes:
        arrays: its arrays and metadata, by name.
    """

    arrays: CheckedArrays

    def __init__(self, path: Location | str, *, read_only: bool = True) -> None:
        """Open a cache in a local folder, in an HDF5 file or at a URL.

        Raises:
            CacheError: no cache there, a format that this version does not read, or a store that refuses access.
        """
        self.arrays = CheckedArrays(path, read_only=read_only)

    @property
    def path(self) -> Location:
        """Where the cache lies."""
        return self.arrays.path

    @property
    def info(self) -> CacheInfo:
        """The metadata."""
        return self.arrays.info

    def __len__(self) -> int:
        return self.info.num_images

    # Plan and progress

    @property
    def num_chunks(self) -> int:
        """The number of embedding chunks of one view."""
        return -(-len(self) // self.info.chunk_rows)

    @property
    def required_arrays(self) -> tuple[str, ...]:
        """The names of the arrays that a cache of this kind must have."""
        return (EMB, NORM, STATUS, *PLANNED_ARRAYS, *(TEACHER_ARRAYS if self.info.source.has_teacher else ()))

    @property
    def array_names(self) -> list[str]:
        """The names of the arrays that this cache has, without those of tokens."""
        if self.info.arrays is not None:
            return self.info.arrays
        return [*self.required_arrays, *(name for name in OPTIONAL_ARRAYS if self.arrays.has(name))]

    def require_arrays(self) -> None:
        """Raise unless all arrays of the cache, and the groups above them, can be opened.

        Raises:
            DamagedCacheError: the metadata of one are absent or damaged.
        """
        for name in parent_groups(self.array_names):
            self.arrays.require_group(name)
        for name in self.array_names:
            self.arrays.array(name)

    def require_laid_out(self) -> None:
        """Raise unless the arrays are laid out as planned.

        Raises:
            CacheError: planning or appending was interrupted.
        """
        if not self.info.is_laid_out:
            done = "planned" if self.info.state == "planning" else "appended to"
            raise CacheError(f"{self.path} was being {done} when it stopped: run its `clipglot cache` command again")

    def require_sealed(self) -> "Cache":
        """Return the cache itself if its pass is complete.

        Raises:
            CacheError: it is not complete; the message says how much is missing.
        """
        self.require_laid_out()
        if self.info.state != "sealed":
            missing = len(self.missing_chunks())
            raise CacheError(
                f"{self.path} is not complete ({missing} of its chunks are still to be embedded): "
                "run the same `clipglot cache` command again to finish it"
            )
        return self

    def chunk_slice(self, chunk: int) -> slice:
        """The rows of an embedding chunk."""
        start = chunk * self.info.chunk_rows
        return slice(start, min(start + self.info.chunk_rows, len(self)))

    def missing_chunks(self) -> list[int]:
        """The chunks that no pass has finished, ascending. Status is written last, so it alone decides."""
        done = self.arrays.stored_chunks(f"{STATUS}/c")
        return [chunk for chunk in range(self.num_chunks) if chunk not in done or self.first_pending(chunk)]

    def failed_chunks(self) -> list[int]:
        """The chunks of a sealed cache with an image that was not embedded, ascending."""
        failed: list[int] = np.unique(np.flatnonzero(self.status() > Status.EMBEDDED) // self.info.chunk_rows).tolist()
        return failed

    def appended_row(self, chunk: int) -> int | None:
        """The first row of the last appended source, if it lies inside a chunk whose rows before it are stored."""
        first, rows = self.info.appended[-1].first_row if self.info.appended else 0, self.chunk_slice(chunk)
        is_inside = rows.start < first < rows.stop
        return first if is_inside and chunk in self.arrays.stored_chunks(f"{STATUS}/c") else None

    def first_pending(self, chunk: int) -> int | None:
        """The row of `appended_row` while the chunk is still to be embedded from there on; else None."""
        first = None if self.info.state == "sealed" else self.appended_row(chunk)
        if first is None or self.status(chunk)[first - self.chunk_slice(chunk).start] != Status.PENDING:
            return None
        return first

    def pending_rows(self, chunk: int) -> range:
        """The rows of a missing chunk that a pass has to read."""
        rows = self.chunk_slice(chunk)
        return range(self.first_pending(chunk) or rows.start, rows.stop)

    def written_rows(self, name: str, rows: slice, view: int | None = None) -> NDArray[np.generic]:
        """Rows at the start of a chunk that an earlier pass has written, of a cache that is not sealed.

        Args:
            name: of the array.
            rows: of one chunk.
            view: of an array with views.
        """
        array, head, chunk = (
            self.arrays.array(name),
            () if view is None else (view,),
            rows.start // self.info.chunk_rows,
        )
        index = (*head, chunk, *[0] * (array.ndim - len(head) - 1))
        folder, _, file = chunk_key(array, index).rpartition("/")
        if file not in self.arrays.stored_names(folder):  # zarr would read it as zeros
            status = (STATUS, (chunk,))
            raise DamagedCacheError(
                Fault(f"{self.path}: {folder}/{file} is absent", self.arrays.remedy([status]), (name, index))
            )
        return self.arrays.read(name, (*head, rows), only=[index])

    # Images

    def image_emb(self, view: int = 0) -> NDArray[np.float16]:
        """All embeddings of one view, `[N, D] float16`, unit norm; zeros for images that were not embedded."""
        return self.arrays.read(EMB, (self._existing_view(view), slice(None)))

    def emb_rows(self, rows: NDArray[np.int64], view: int = 0) -> NDArray[np.float16]:
        """Embeddings of some rows, in the order given, `[len(rows), D] float16`; only their chunks are read.

        Raises:
            IndexError: the cache has no such row or view.
        """
        rows, view = np.asarray(rows, np.int64), self._existing_view(view)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} requested, the cache has {len(self)}")
        emb = np.empty((len(rows), self.info.encoder.dim), np.float16)
        order = np.argsort(rows, kind="stable")
        chunks, starts = np.unique(rows[order] // self.info.chunk_rows, return_index=True)
        with self.arrays.checked(EMB, only=[(view, chunk, 0) for chunk in chunks.tolist()]):
            array = self.arrays.array(EMB)
            for chunk, positions in zip(chunks.tolist(), np.split(order, starts[1:]), strict=False):
                chunk_rows = self.chunk_slice(chunk)
                emb[positions] = np.asarray(array[view, chunk_rows])[rows[positions] - chunk_rows.start]
        return emb

    def mapped(self, name: str, view: int = 0) -> MmapRows:
        """The rows of an array, one view of it, mapped from the chunk files. Call `check` before use.

        Args:
            name: of an array of a sealed cache in a local folder.
            view: of an array with views.

        Raises:
            CacheError: a chunk is absent or of the wrong size, or the cache is not in a local folder.
        """
        array, folder = self.arrays.array(name), self.arrays.folder / name
        return MmapRows(
            array, folder, view=self._existing_view(view), remedy=lambda index: self.arrays.remedy([(name, index)])
        )

    def norm(self, view: int = 0) -> NDArray[np.float32]:
        """The lengths of the embeddings before normalisation, `[N] float32`.

        0 where an image was not embedded, and where a further view repeats the plain one.
        """
        return self.arrays.read(NORM, (self._existing_view(view), slice(None)))

    def status(self, chunk: int | None = None) -> NDArray[np.uint8]:
        """The `Status` of each image, or of each image of a chunk, `[N] uint8`."""
        if chunk is None:
            return self.arrays.read(STATUS)
        return self.arrays.read(STATUS, (self.chunk_slice(chunk),), only=[(chunk,)])

    def count_status(self) -> dict[Status, int]:
        """The number of images of each status that occurs."""
        counts = np.bincount(self.status(), minlength=max(Status) + 1).tolist()
        if len(counts) > max(Status) + 1:
            raise self._damaged(f"{STATUS}: unknown status {len(counts) - 1}")
        return {status: counts[status] for status in Status if counts[status]}

    def failures(self) -> Iterator[Failure]:
        """The images that were tried and not embedded, in row order."""
        status = self.status()
        if status.max(initial=0) > max(Status):
            raise self._damaged(f"{STATUS}: unknown status {status.max()}")
        for start in range(0, len(self), ROWS_AT_A_TIME):
            failed = np.flatnonzero(status[start : start + ROWS_AT_A_TIME] > Status.EMBEDDED).tolist()
            keys = self.keys(start, start + ROWS_AT_A_TIME) if failed else []
            for i in failed:
                yield Failure(start + i, keys[i], Status(int(status[start + i])))

    def hashes(self, chunk: int) -> NDArray[np.uint64]:
        """The blake2b hashes of the bytes of a chunk's R images, `[R, 2] uint64`; zeros for unreadable ones."""
        return self.arrays.read(HASH, (self.chunk_slice(chunk),), only=[(chunk, 0)])

    def keys(self, start: int = 0, stop: int | None = None) -> list[str]:
        """The keys of images `start` to `stop`: their paths as the source names them."""
        return self._read_texts(KEY, start, stop)

    def files(self) -> list[str]:
        """The archives and tables that hold images, as paths below the image root; empty where keys are paths."""
        return self._read_texts(FILE, 0, None) if self.arrays.has(FILE) else []

    def locators(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64] | None:
        """The places of images `start` to `stop` in `files`, `[n, 3]`, see `Locator`; None where keys are paths."""
        return self.arrays.read(LOCATOR, (slice(start, stop),)) if self.arrays.has(LOCATOR) else None

    # Captions

    @property
    def caption_names(self) -> tuple[str, ...]:
        """Names of the sets that the captions come from; `source` is what the cache was made with."""
        return (OWN_CAPTIONS,)

    @property
    def chosen_sets(self) -> list[CaptionSetInfo]:
        """The further sets that the captions come from, in the order of `caption_names`."""
        return []

    @property
    def tokens_folder(self) -> Path | None:
        """Folder for tokens of the captions; None unless the cache is a local folder."""
        return self.arrays.folder / TOKENS if self.arrays.is_folder else None

    def captions(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Captions `start` to `stop`, in the order of `caption_image`."""
        return self._read_texts(TEXT, start, stop)

    def captions_by_image(self, rows: slice, caption_image: NDArray[np.int64]) -> list[list[str]]:
        """The captions of each image of some rows.

        Args:
            rows: from a row to another.
            caption_image: what `caption_image` gave.
        """
        first, end = np.searchsorted(caption_image, [rows.start, rows.stop]).tolist()
        result: list[list[str]] = [[] for _ in range(rows.stop - rows.start)]
        for row, text in zip(caption_image[first:end].tolist(), self.captions(first, end), strict=True):
            result[row - rows.start].append(text)
        return result

    def caption_image(self) -> NDArray[np.int64]:
        """The row of each caption's image, `[M] int64`, ascending."""
        rows: NDArray[np.int64] = self.arrays.read(CAPTION_IMAGE)
        if len(rows) and not (rows[0] >= 0 and rows[-1] < len(self) and (rows[1:] >= rows[:-1]).all()):
            raise self._damaged(f"{CAPTION_IMAGE}: not ascending rows of {len(self):,} images")
        return rows

    @property
    def has_languages(self) -> bool:
        """Whether captions have language tags."""
        return self.arrays.has(LANGUAGE)

    def languages(self, start: int = 0, stop: int | None = None) -> list[str] | None:
        """The language tags of captions `start` to `stop`, "" for a caption without one; None without any tags."""
        if not self.has_languages:
            return None
        return [self.info.languages[code] for code in self.language_codes(start, stop).tolist()]

    def count_languages(self) -> dict[str, int]:
        """The number of captions of each language tag, most frequent first; empty without any tags."""
        if not self.has_languages:
            return {}
        counts = np.bincount(self.language_codes(), minlength=len(self.info.languages)).tolist()
        return {tag: num for num, tag in sorted(zip(counts, self.info.languages, strict=True), reverse=True) if num}

    def translations(self) -> list[str]:
        """The captions' translations, `[M]`, "" where there is none; empty without any."""
        if not self.info.source.has_teacher:
            return []
        return self._read_texts(TEACHER_TEXT, 0, None)

    def teacher_status(self) -> NDArray[np.uint8]:
        """The `TextTargetStatus` of each caption's translation, `[M] uint8`."""
        return self.arrays.read(TEACHER_STATUS)

    def teacher_emb(self) -> NDArray[np.float16]:
        """The text teacher's embeddings of all captions, `[M, D] float16`, unit norm; zeros where there is none."""
        return self.arrays.read(TEACHER_EMB, (0, slice(None)))

    def language_codes(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint16]:
        """Language tags of captions `start` to `stop`, as indices into the metadata's `languages`."""
        codes: NDArray[np.uint16] = self.arrays.read(LANGUAGE, (slice(start, stop),))
        if codes.max(initial=0) >= max(1, len(self.info.languages)):
            raise self._damaged(
                f"{LANGUAGE}: code {codes.max()}, the metadata name {len(self.info.languages)} languages"
            )
        return codes

    def _damaged(self, problem: str) -> DamagedCacheError:
        return DamagedCacheError(Fault(f"{self.path}: {problem}", self.arrays.remedy()))

    def _existing_view(self, view: int) -> int:
        if not 0 <= view < self.info.num_views:
            raise IndexError(f"view {view} requested, the cache has {self.info.num_views}")
        return view

    def _read_texts(self, name: str, start: int, stop: int | None) -> list[str]:
        texts = self.arrays.read_ragged(name, start, stop).split()
        try:
            return [text.decode() for text in texts]
        except UnicodeDecodeError as error:
            row = start + next(i for i, text in enumerate(texts) if text == error.object)
            raise self._damaged(f"{name}/bytes: row {row} is no UTF-8") from error
