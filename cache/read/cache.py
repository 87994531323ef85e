"""Reading a cache: its metadata, rows and integrity. Writing goes through `plan` and `embed`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
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
    PLANNED_ARRAYS,
    STATUS,
    TEACHER_ARRAYS,
    TEACHER_EMB,
    TEACHER_STATUS,
    TEXT,
    Status,
)
from ..storage.mmap import MmapRows
from ..storage.ragged import RaggedBytes, RaggedReader
from .arrays import CheckedArrays, chunk_name, groups_above

ROWS_AT_A_TIME = 8192


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that was not embedded, and why."""

    row: int
    key: str
    status: Status


class Cache(CheckedArrays):
    """An existing cache. N images, M captions, V views, D features.

    ::

        cache = Cache(Path("cache.zarr"))
        cache.image_emb().shape  # (6000, 512)
        cache.captions(0, 5)  # the first five
    """

    def __len__(self) -> int:
        return self.info.num_pictures

    @property
    def num_chunks(self) -> int:
        """Embedding chunks along the image axis."""
        return -(-len(self) // self.info.chunk_rows)

    @property
    def required_arrays(self) -> tuple[str, ...]:
        """The arrays that a cache of this kind must have."""
        return (EMB, NORM, STATUS, *PLANNED_ARRAYS, *(TEACHER_ARRAYS if self.info.source.has_teacher else ()))

    @property
    def array_names(self) -> list[str]:
        """The arrays that the cache has, but for those of tokens."""
        if self.info.arrays is not None:
            return self.info.arrays
        return [*self.required_arrays, *(name for name in OPTIONAL_ARRAYS if self.has(name))]

    def require_described(self) -> None:
        """Raise unless the arrays that the cache has, and the groups above them, can be opened.

        Raises:
            CacheError: the metadata of one are absent or damaged.
        """
        for name in groups_above(self.array_names):
            self.require_group(name)
        for name in self.array_names:
            self.array(name)

    def chunk_slice(self, chunk: int) -> slice:
        """The rows of an embedding chunk."""
        start = chunk * self.info.chunk_rows
        return slice(start, min(start + self.info.chunk_rows, len(self)))

    def require_laid_out(self) -> None:
        """Raise unless the arrays stand as planned.

        Raises:
            CacheError: a plan, or that of an appended source, was cut short.
        """
        if not self.info.is_laid_out:
            done = "planned" if self.info.state == "planning" else "appended to"
            raise CacheError(f"{self.path} was being {done} when it stopped: run its `clipglot cache` command again")

    def require_sealed(self) -> "Cache":
        """Return the cache if its pass is complete.

        Raises:
            CacheError: it is not; the message says how much is missing.
        """
        self.require_laid_out()
        if self.info.state != "sealed":
            missing = len(self.missing_chunks())
            raise CacheError(
                f"{self.path} is not complete ({missing} of its chunks are still to be embedded): "
                "run the same `clipglot cache` command again to finish it"
            )
        return self

    def missing_chunks(self) -> list[int]:
        """The chunks that no pass has finished, ascending. Status is written last, so it alone tells."""
        done = self.stored_numbers(f"{STATUS}/c")
        return [chunk for chunk in range(self.num_chunks) if chunk not in done or self.first_pending(chunk)]

    def failed_chunks(self) -> list[int]:
        """The chunks of a sealed cache in which some image was not embedded, ascending."""
        failed: list[int] = np.unique(np.flatnonzero(self.status() > Status.EMBEDDED) // self.info.chunk_rows).tolist()
        return failed

    def appended_row(self, chunk: int) -> int | None:
        """The row inside a chunk at which the last source was appended, if the rows before it are stored; else None."""
        first, rows = self.info.appended[-1].first_row if self.info.appended else 0, self.chunk_slice(chunk)
        inside = rows.start < first < rows.stop
        return first if inside and chunk in self.stored_numbers(f"{STATUS}/c") else None

    def first_pending(self, chunk: int) -> int | None:
        """The same while that row, and with it the rest of the chunk, is still to be embedded; else None."""
        first = None if self.info.state == "sealed" else self.appended_row(chunk)
        if first is None or self.status(chunk)[first - self.chunk_slice(chunk).start] != Status.PENDING:
            return None
        return first

    def pending_rows(self, chunk: int) -> range:
        """The rows of a missing chunk that a pass has to read."""
        rows = self.chunk_slice(chunk)
        return range(self.first_pending(chunk) or rows.start, rows.stop)

    def rows_kept(self, name: str, rows: slice, view: int | None = None) -> NDArray[Any]:
        """Rows at the start of a chunk that a pass has written, though the cache is not sealed.

        Args:
            name: of the array.
            rows: of one chunk.
            view: of an array that has views.

        Raises:
            CacheError: they are absent or damaged.
        """
        array, head, chunk = self.array(name), () if view is None else (view,), rows.start // self.info.chunk_rows
        index = (*head, chunk, *[0] * (array.ndim - len(head) - 1))
        folder, _, file = chunk_name(array, index).rpartition("/")
        if file not in self.stored_names(folder):  # zarr would make it zeros
            raise CacheError(f"{self.path}: {folder}/{file} is absent: {self.remedy([(STATUS, (chunk,))])}")
        return self._read(name, (*head, rows), only=[index])

    def image_emb(self, view: int = 0) -> NDArray[np.float16]:
        """All embeddings of one view, `[N, D] float16`, unit norm; rows that were not embedded are zero."""
        return self._read(EMB, (self._stored(view), slice(None)))

    def emb_rows(self, rows: NDArray[np.int64], view: int = 0) -> NDArray[np.float16]:
        """Embeddings of some rows, in the order given, `[len(rows), D] float16`; only their chunks are read.

        Raises:
            IndexError: a row or view that is not in the cache.
        """
        rows, view = np.asarray(rows, np.int64), self._stored(view)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} asked for, the cache has {len(self)}")
        emb = np.empty((len(rows), self.info.encoder.dim), np.float16)
        order = np.argsort(rows, kind="stable")
        chunks, starts = np.unique(rows[order] // self.info.chunk_rows, return_index=True)
        with self._whole(EMB, only=[(view, chunk, 0) for chunk in chunks.tolist()]):
            array = self.array(EMB)
            for chunk, wanted in zip(chunks.tolist(), np.split(order, starts[1:]), strict=False):
                held = self.chunk_slice(chunk)
                emb[wanted] = np.asarray(array[view, held])[rows[wanted] - held.start]
        return emb

    def mapped(self, name: str, view: int = 0) -> MmapRows:
        """The rows of an array, one view of it, mapped from the chunk files of a sealed cache; `check` them before use.

        Raises:
            CacheError: a chunk is absent or of the wrong size, or the cache lies at a URL.
        """
        found = self.array(name), self.folder / name
        return MmapRows(*found, view=self._stored(view), remedy=lambda index: self.remedy([(name, index)]))

    def norm(self, view: int = 0) -> NDArray[np.float32]:
        """The lengths that were divided out, `[N] float32`; 0 where a further view repeats the plain one."""
        return self._read(NORM, (self._stored(view), slice(None)))

    def status(self, chunk: int | None = None) -> NDArray[np.uint8]:
        """What became of each image, or of each in a chunk, `[N] uint8`; see `Status`."""
        if chunk is None:
            return self._read(STATUS, (slice(None),))
        return self._read(STATUS, (self.chunk_slice(chunk),), only=[(chunk,)])

    def hashes(self, chunk: int) -> NDArray[np.uint64]:
        """blake2b of the bytes of each image in a chunk, `[R, 2] uint64`; zeros where none could be read."""
        return self._read(HASH, (self.chunk_slice(chunk),), only=[(chunk, 0)])

    def teacher_status(self) -> NDArray[np.uint8]:
        """What became of each caption's translation, `[M] uint8`; see `TextTargetStatus`."""
        return self._read(TEACHER_STATUS, (slice(None),))

    def teacher_emb(self) -> NDArray[np.float16]:
        """All embeddings of the teacher, `[M, D] float16`, unit norm, zeros where a caption has none."""
        return self._read(TEACHER_EMB, (0, slice(None)))

    def caption_image(self) -> NDArray[np.int64]:
        """The row of each caption's image, `[M] int64`, ascending."""
        return self._read(CAPTION_IMAGE, (slice(None),))

    def captions(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Captions `start` to `stop`, in the order of `caption_image`."""
        return self._ragged(TEXT, start, stop)

    def languages(self, start: int = 0, stop: int | None = None) -> list[str] | None:
        """The tags of captions `start` to `stop`, empty where one has none; None where the source tells none at all."""
        if not self.has(LANGUAGE):
            return None
        return [self.info.languages[code] for code in self._read(LANGUAGE, (slice(start, stop),)).tolist()]

    def count_languages(self) -> dict[str, int]:
        """How many captions have each tag, the most frequent first; empty where the source tells none."""
        if not self.has(LANGUAGE):
            return {}
        counts = np.bincount(self._read(LANGUAGE, (slice(None),)), minlength=len(self.info.languages)).tolist()
        return {tag: num for num, tag in sorted(zip(counts, self.info.languages, strict=True), reverse=True) if num}

    def keys(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Keys of images `start` to `stop`: their paths as the manifest has them."""
        return self._ragged(KEY, start, stop)

    def files(self) -> list[str]:
        """The larger files that locators count, as paths below the image root; none where keys are paths."""
        return self._ragged(FILE, 0, None) if self.has(FILE) else []

    def locators(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64] | None:
        """Where images `start` to `stop` lie, `[n, 3]`, see `Locator`; None where keys are paths."""
        return self._read(LOCATOR, (slice(start, stop),)) if self.has(LOCATOR) else None

    def failures(self) -> Iterator[Failure]:
        """Every image that was tried and not embedded, in row order."""
        status = self.status()
        for start in range(0, len(self), ROWS_AT_A_TIME):
            failed = np.flatnonzero(status[start : start + ROWS_AT_A_TIME] > Status.EMBEDDED).tolist()
            keys = self.keys(start, start + ROWS_AT_A_TIME) if failed else []
            for i in failed:
                yield Failure(start + i, keys[i], Status(int(status[start + i])))

    def count_status(self) -> dict[Status, int]:
        """How many images have each status."""
        counts = np.bincount(self.status(), minlength=max(Status) + 1).tolist()
        return {status: counts[status] for status in Status if counts[status]}

    def _stored(self, view: int) -> int:
        if not 0 <= view < self.info.num_views:
            raise IndexError(f"view {view} asked for, the cache has {self.info.num_views}")
        return view

    def read(self, name: str, selection: tuple[Any, ...] = (...,)) -> NDArray[Any]:
        """All of an array, or some."""
        return self._read(name, selection)

    def texts(self, name: str, start: int = 0, stop: int | None = None) -> RaggedBytes:
        """Some texts of a ragged array, as arrays."""
        with self._whole(f"{name}/bytes", f"{name}/offsets"):
            return RaggedReader(self.root, name).texts(start, stop)

    def _ragged(self, name: str, start: int, stop: int | None) -> list[str]:
        return [text.decode() for text in self.texts(name, start, stop).split()]
