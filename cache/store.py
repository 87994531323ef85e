"""Reading a cache: its metadata, rows and integrity. Writing goes through `plan` and `embed`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from .checked import CheckedGroup, chunk_indices, chunk_name
from .errors import CacheError
from .format import (
    CAPTION_IMAGE,
    EMB,
    EMBEDDED_ARRAYS,
    FILE,
    KEY,
    LANGUAGE,
    LOCATOR,
    NORM,
    PLANNED_ARRAYS,
    STATUS,
    TEACHER_ARRAYS,
    TEACHER_EMB,
    TEACHER_STATUS,
    TEXT,
    TOKENS,
    Status,
)
from .mapped import MappedRows
from .ragged import RaggedReader
from .stores import RemoteStore
from .tokens import TOKEN_GROUP, find_token_faults

ROWS_AT_A_TIME = 8192


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture that was not embedded, and why."""

    row: int
    key: str
    status: Status


class Cache(CheckedGroup):
    """An existing cache. N pictures, M captions, V views, D features.

    ::

        cache = Cache(Path("cache.zarr"))
        cache.image_emb().shape  # (6000, 512)
        cache.captions(0, 5)  # the first five
    """

    def __len__(self) -> int:
        return self.info.num_pictures

    @property
    def num_chunks(self) -> int:
        """Embedding chunks along the picture axis."""
        return -(-len(self) // self.info.chunk_rows)

    def chunk_slice(self, chunk: int) -> slice:
        """The rows of an embedding chunk."""
        start = chunk * self.info.chunk_rows
        return slice(start, min(start + self.info.chunk_rows, len(self)))

    def require_sealed(self) -> "Cache":
        """Return the cache if its pass is complete.

        Raises:
            CacheError: it is not; the message says how much is missing.
        """
        if self.info.state != "sealed":
            missing = len(self.missing_chunks()) if self.info.state == "planned" else "all"
            raise CacheError(
                f"{self.path} is not complete ({missing} of its chunks are still to be embedded): "
                "run the same `clipglot cache` command again to finish it"
            )
        return self

    def missing_chunks(self) -> list[int]:
        """The chunks that no pass has finished, ascending. Status is written last, so it alone tells."""
        done = self.stored_numbers(f"{STATUS}/c")
        return [chunk for chunk in range(self.num_chunks) if chunk not in done or self.first_pending(chunk) is not None]

    def first_pending(self, chunk: int) -> int | None:
        """The first row of a chunk that is still to be embedded while those before it are not: a source was appended.

        None if the chunk is done, or nothing of it is stored.
        """
        rows = self.chunk_slice(chunk)
        begins = [source.first_row for source in self.info.appended if rows.start < source.first_row < rows.stop]
        if self.info.state == "sealed" or not begins or chunk not in self.stored_numbers(f"{STATUS}/c"):
            return None
        pending = np.flatnonzero(self.status(chunk) == Status.PENDING)
        return rows.start + int(pending[0]) if len(pending) else None

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

    def mapped(self, name: str, view: int = 0) -> MappedRows:
        """The rows of an array, one view of it, mapped from the chunk files of a sealed cache; `check` them before use.

        Raises:
            CacheError: a chunk is absent or of the wrong size, or the cache lies at a URL.
        """
        found = self.array(name), self.folder / name
        return MappedRows(*found, view=self._stored(view), remedy=lambda index: self._remedy([(name, index)]))

    def norm(self, view: int = 0) -> NDArray[np.float32]:
        """The lengths that were divided out, `[N] float32`; 0 where a further view repeats the plain one."""
        return self._read(NORM, (self._stored(view), slice(None)))

    def status(self, chunk: int | None = None) -> NDArray[np.uint8]:
        """What became of each picture, or of each in a chunk, `[N] uint8`; see `Status`."""
        if chunk is None:
            return self._read(STATUS, (slice(None),))
        return self._read(STATUS, (self.chunk_slice(chunk),), only=[(chunk,)])

    def teacher_status(self) -> NDArray[np.uint8]:
        """What became of each caption's translation, `[M] uint8`; see `TeacherStatus`."""
        return self._read(TEACHER_STATUS, (slice(None),))

    def teacher_emb(self) -> NDArray[np.float16]:
        """All embeddings of the teacher, `[M, D] float16`, unit norm, zeros where a caption has none."""
        return self._read(TEACHER_EMB, (0, slice(None)))

    def caption_image(self) -> NDArray[np.int64]:
        """The row of each caption's picture, `[M] int64`, ascending."""
        return self._read(CAPTION_IMAGE, (slice(None),))

    def captions(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Captions `start` to `stop`, in the order of `caption_image`."""
        return self._ragged(TEXT, start, stop)

    def languages(self, start: int = 0, stop: int | None = None) -> list[str] | None:
        """The tags of captions `start` to `stop`, empty where one has none; None where the source tells none at all."""
        if LANGUAGE not in self.root:
            return None
        return [self.info.languages[code] for code in self._read(LANGUAGE, (slice(start, stop),)).tolist()]

    def count_languages(self) -> dict[str, int]:
        """How many captions have each tag, the most frequent first; empty where the source tells none."""
        if LANGUAGE not in self.root:
            return {}
        counts = np.bincount(self._read(LANGUAGE, (slice(None),)), minlength=len(self.info.languages)).tolist()
        return {tag: num for num, tag in sorted(zip(counts, self.info.languages, strict=True), reverse=True) if num}

    def keys(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Keys of pictures `start` to `stop`: their paths as the manifest has them."""
        return self._ragged(KEY, start, stop)

    def files(self) -> list[str]:
        """The larger files that locators count, as paths below the image root; none where keys are paths."""
        return self._ragged(FILE, 0, None) if FILE in self.root else []

    def locators(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64] | None:
        """Where pictures `start` to `stop` lie, `[n, 3]`, see `Locator`; None where keys are paths."""
        return self._read(LOCATOR, (slice(start, stop),)) if LOCATOR in self.root else None

    def failures(self) -> Iterator[Failure]:
        """Every picture that was tried and not embedded, in row order."""
        status = self.status()
        for start in range(0, len(self), ROWS_AT_A_TIME):
            failed = np.flatnonzero(status[start : start + ROWS_AT_A_TIME] > Status.EMBEDDED).tolist()
            keys = self.keys(start, start + ROWS_AT_A_TIME) if failed else []
            for i in failed:
                yield Failure(start + i, keys[i], Status(int(status[start + i])))

    def count_status(self) -> dict[Status, int]:
        """How many pictures have each status."""
        counts = np.bincount(self.status(), minlength=max(Status) + 1).tolist()
        return {status: counts[status] for status in Status if counts[status]}

    def verify(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """Read every stored chunk, tokens too, and check it against its checksum, then the counts against each other.

        Returns:
            One line a fault, naming the chunk's file and what to do; empty when the cache is whole.

        Raises:
            CacheError: planning did not finish, so there is nothing to check.
        """
        if self.info.state in ("planning", "appending"):
            raise CacheError(f"{self.path} was being planned when it stopped: run its `clipglot cache` command again")
        faults, arrays = [], {}
        taught = TEACHER_ARRAYS if self.info.source.has_teacher else ()
        for name in (*EMBEDDED_ARRAYS, *PLANNED_ARRAYS, *taught, *self._remote_tokens()):
            try:
                arrays[name] = self.array(name)
            except CacheError as error:
                faults.append(str(error))
        total, done = sum(len(chunk_indices(array)) for array in arrays.values()), 0
        for name, array in arrays.items():
            for index in chunk_indices(array):
                fault = self._chunk_fault(array, index)
                if fault:
                    faults.append(f"{chunk_name(array, index)}: {fault}: {self._remedy([(name, index)])}")
                done += 1
                on_progress(done, total)
        if isinstance(self.path, Path):
            faults += find_token_faults(self.path / TOKENS, self.info.num_captions)
        return faults or list(self._count_faults(arrays))

    def _remote_tokens(self) -> list[str]:
        """Arrays of tokens that were uploaded with the cache; local ones are checked as they are read, mapped."""
        if isinstance(self._store, RemoteStore):
            keys = filter(TOKEN_GROUP.fullmatch, sorted(self._store.names(TOKENS)))
            return [f"{TOKENS}/{key}/{name}" for key in keys for name in ("ids", "offsets")]
        return []

    def _count_faults(self, arrays: Mapping[str, zarr.Array[Any]]) -> Iterator[str]:
        """What does not fit together although every checksum holds; these facts lie in zarr.json files."""
        remake, info, N, M = self._remedy([]), self.info, self.info.num_pictures, self.info.num_captions
        shapes = {
            EMB: (max(info.num_views, arrays[EMB].shape[0]), N, info.encoder.dim),  # more views may be under way
            NORM: (max(info.num_views, arrays[NORM].shape[0]), N),
            STATUS: (N,),
            f"{KEY}/offsets": (N + 1,),
            f"{TEXT}/offsets": (M + 1,),
            CAPTION_IMAGE: (M,),
        }
        wrong = {name: arrays[name].shape for name, shape in shapes.items() if arrays[name].shape != shape}
        for name, shape in wrong.items():
            yield f"{name}/zarr.json: shape {shape}, expected {shapes[name]}: {remake}"
        if wrong:
            return
        counts = {status.label: count for status, count in self.count_status().items()}
        if info.state == "sealed" and counts != info.counts:
            yield f"zarr.json: counts are {info.counts}, the pictures' statuses say {counts}: {remake}"
        owners = self.caption_image()
        if len(owners) and (owners[0] < 0 or owners[-1] >= N or bool((np.diff(owners) < 0).any())):
            yield f"{CAPTION_IMAGE}: not ascending rows of {N} pictures: {remake}"

    def _stored(self, view: int) -> int:
        if not 0 <= view < self.info.num_views:
            raise IndexError(f"view {view} asked for, the cache has {self.info.num_views}")
        return view

    def _ragged(self, name: str, start: int, stop: int | None) -> list[str]:
        with self._whole(f"{name}/bytes", f"{name}/offsets"):
            return RaggedReader(self.root, name).read(start, stop)
