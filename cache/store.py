"""Reading a cache: its metadata, rows and integrity. Writing goes through `plan` and `embed`."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from .errors import CacheError
from .files import DurableLocalStore
from .format import CAPTION_IMAGE, EMB, KEY, NORM, STATUS, TEXT, CacheInfo, Status
from .ragged import RaggedReader

REMAKE = "delete the cache and run its `clipglot cache` command again"


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture that was not embedded, and why."""

    row: int
    key: str
    status: Status


class Cache:
    """An existing cache. N pictures, M captions, V views, D features.

    >>> cache = Cache(Path("cache.zarr"))  # doctest: +SKIP
    >>> cache.image_emb().shape            # doctest: +SKIP
    (6000, 512)
    """

    def __init__(self, path: Path, *, read_only: bool = True) -> None:
        """Open a cache.

        Raises:
            CacheError: nothing there, no cache, or a format that this version does not read.
        """
        if not path.exists():
            raise CacheError(f"{path}: no such cache: make one with `clipglot cache SOURCE -o {path} …`")
        try:
            self.root = zarr.open_group(DurableLocalStore(path, read_only=read_only), mode="r" if read_only else "r+")
        except (FileNotFoundError, ValueError, TypeError, KeyError, NotADirectoryError) as error:
            raise CacheError(f"{path} is no Zarr group ({error})") from error
        self.path = path
        self.info = CacheInfo.from_attributes(dict(self.root.attrs), str(path))

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
        folder = self.path / STATUS / "c"
        done = {int(file.name) for file in folder.iterdir() if file.name.isdigit()} if folder.is_dir() else set()
        return [chunk for chunk in range(self.num_chunks) if chunk not in done]

    def image_emb(self, view: int = 0) -> NDArray[np.float16]:
        """All embeddings of one view, `[N, D] float16`, unit norm; rows that were not embedded are zero."""
        return self._read(EMB, (view, slice(None)))

    def norm(self, view: int = 0) -> NDArray[np.float32]:
        """The lengths that were divided out, `[N] float32`."""
        return self._read(NORM, (view, slice(None)))

    def status(self) -> NDArray[np.uint8]:
        """What became of each picture, `[N] uint8`; see `Status`."""
        return self._read(STATUS, (slice(None),))

    def caption_image(self) -> NDArray[np.int64]:
        """The row of each caption's picture, `[M] int64`, ascending."""
        return self._read(CAPTION_IMAGE, (slice(None),))

    def captions(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Captions `start` to `stop`, in the order of `caption_image`."""
        return self._ragged(TEXT, start, stop)

    def keys(self, start: int = 0, stop: int | None = None) -> list[str]:
        """Keys of pictures `start` to `stop`: their paths as the manifest has them."""
        return self._ragged(KEY, start, stop)

    def failures(self) -> Iterator[Failure]:
        """Every picture that was not embedded, in row order."""
        status = self.status()
        for row in np.flatnonzero(status != Status.EMBEDDED).tolist():
            yield Failure(row, self.keys(row, row + 1)[0], Status(int(status[row])))

    def count_status(self) -> dict[Status, int]:
        """How many pictures have each status."""
        counts = Counter(self.status().tolist())
        return {status: counts[status] for status in Status if counts[status]}

    def verify(self, on_progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """Read every stored chunk and check it against its checksum.

        Returns:
            One line a fault, naming the chunk's file; empty when the cache is whole.
        """
        faults = []
        arrays: list[zarr.Array[Any]] = [a for _, a in self.root.members(max_depth=None) if isinstance(a, zarr.Array)]
        total = sum(int(np.prod(array.cdata_shape)) for array in arrays)
        done = 0
        for array in arrays:
            for index in np.ndindex(*array.cdata_shape):
                fault = self._chunk_fault(array, index)
                if fault and not (fault == "absent" and self.info.state != "sealed"):
                    faults.append(f"{_chunk_name(array, index)}: {fault}")
                done += 1
                on_progress(done, total)
        return faults

    def _read(self, name: str, selection: tuple[Any, ...]) -> NDArray[Any]:
        array = self.root[name]
        if self.info.state == "sealed":  # zarr reads an absent chunk as zeros; in a sealed cache it is a loss
            absent = [i for i in np.ndindex(*array.cdata_shape) if not self._chunk_file(array, i).exists()]
            if absent:
                raise CacheError(
                    f"{self.path}: {_chunk_name(array, absent[0])} is absent from a sealed cache: {REMAKE}"
                )
        try:
            return np.asarray(array[selection])
        except ValueError as error:
            raise self._damaged([array], error) from error

    def _ragged(self, name: str, start: int, stop: int | None) -> list[str]:
        try:
            return RaggedReader(self.root, name).read(start, stop)
        except ValueError as error:  # includes UnicodeDecodeError
            raise self._damaged([self.root[f"{name}/bytes"], self.root[f"{name}/offsets"]], error) from error

    def _damaged(self, arrays: list[zarr.Array[Any]], error: Exception) -> CacheError:
        """Name the chunks that made a read fail."""
        names = [
            _chunk_name(array, index)
            for array in arrays
            for index in np.ndindex(*array.cdata_shape)
            if self._chunk_fault(array, index) not in (None, "absent")
        ]
        return CacheError(f"{self.path}: damaged chunk {', '.join(names) or '(unknown)'} ({error}): {REMAKE}")

    def _chunk_file(self, array: zarr.Array[Any], index: tuple[int, ...]) -> Path:
        return self.path / _chunk_name(array, index)

    def _chunk_fault(self, array: zarr.Array[Any], index: tuple[int, ...]) -> str | None:
        """What is wrong with a stored chunk: "absent", a checksum that does not match, or None."""
        if not self._chunk_file(array, index).exists():
            return "absent"
        try:
            array.blocks[index]
        except ValueError as error:
            return str(error)
        return None


def _chunk_name(array: zarr.Array[Any], index: tuple[int, ...]) -> str:
    return f"{array.path}/{array.metadata.encode_chunk_key(index)}"
