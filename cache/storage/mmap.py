"""Memory-mapped rows of a local array: random reads straight from its chunk files, as fast as from one flat file.

A chunk file is raw bytes with a crc32c tail, so it can be mapped. All chunks of an array are mapped into one range of
addresses, each at a whole number of rows: reading any rows is then one gather, however many chunks hold them. This
bypasses zarr's codec, so damage goes unnoticed until `check` has read every chunk once.
"""

import ctypes
import math
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import DamagedCacheError, Fault
from ..progress import OnProgress, Progress, ignore_progress
from .encoding import CRC_BYTES, WrongLayoutError, chunk_file_bytes, require_raw
from .regular import open_regular, read_regular

READ_THREADS = 8
MAP_FIXED = 0x10  # on Linux and macOS; the standard library names neither it nor mmap's address
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)


class MmapRows:
    """N mapped rows: all rows of a one-dimensional array, or those of one view.

    Resident memory is page cache only, and no file stays open.

    Attributes:
        shape: `(N, …)`.
        dtype: of the rows.
    """

    def __init__(
        self, array: zarr.Array[Any], folder: Path, *, remedy: Callable[[tuple[int, ...]], str], view: int = 0
    ) -> None:
        """Map every chunk.

        Args:
            array: `[N]` in chunks `[R]`, or `[V, N, …]` in chunks `[1, R, …]`.
            folder: of the array, with its zarr.json and chunks.
            remedy: tells what to do about a lost or damaged chunk, given its index.
            view: one of V.

        Raises:
            DamagedCacheError: another encoding, or a chunk that is absent, of the wrong size or no regular file.
        """
        _require_whole_rows(array, folder)
        axis = min(array.ndim - 1, 1)
        self.shape, self.dtype = array.shape[axis:], array.dtype
        self._folder, self._remedy = folder, remedy
        self._indices = [index for index in np.ndindex(*array.cdata_shape) if not axis or index[0] == view]
        self._files = [folder / array.metadata.encode_chunk_key(index) for index in self._indices]
        self._chunk_rows = array.chunks[axis]

        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        self._file_bytes = chunk_file_bytes(array)
        # Addresses cost nothing, so each chunk gets a slot of whole pages and whole rows.
        granularity = math.lcm(mmap.ALLOCATIONGRANULARITY, row_bytes)
        slot_bytes = -(-self._file_bytes // granularity) * granularity
        self._slot_rows = slot_bytes // row_bytes
        space = self._reserve(max(1, len(self._files)) * slot_bytes)
        raw = np.frombuffer(space, np.uint8)  # keeps `space` alive; when it is freed, the chunks are unmapped too
        for i in range(len(self._files)):
            self._map(i, raw.ctypes.data + i * slot_bytes)
        self._rows: NDArray[Any] = raw.view(self.dtype).reshape(-1, *self.shape[1:])

    def __len__(self) -> int:
        return int(self.shape[0])

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Rows in the order given; a row may be repeated.

        Raises:
            IndexError: no such row.
        """
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} requested, {self._folder} has {len(self)}")
        if len(self._files) > 1:
            rows = rows + rows // self._chunk_rows * (self._slot_rows - self._chunk_rows)
        return self._rows.take(rows, axis=0)

    def read(self, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """A copy of rows `start` to `stop` (exclusive), by default of all rows."""
        start, stop, _ = slice(start, stop).indices(len(self))
        rows = np.empty((max(0, stop - start), *self.shape[1:]), self.dtype)
        for chunk_start in range(start - start % self._chunk_rows, stop, self._chunk_rows):
            first, last = max(start, chunk_start), min(stop, chunk_start + self._chunk_rows)
            offset = chunk_start // self._chunk_rows * self._slot_rows - chunk_start
            rows[first - start : last - start] = self._rows[first + offset : last + offset]
        return rows

    def check(self, on_progress: OnProgress = ignore_progress) -> "MmapRows":
        """Read every chunk and return the rows if all match their checksums.

        Raises:
            CacheError: with the chunk's file and what to do.
        """
        with ThreadPoolExecutor(READ_THREADS) as threads:
            for done, fault in enumerate(threads.map(self._fault, range(len(self._files))), 1):
                if fault:
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise DamagedCacheError(fault)
                on_progress(Progress("check", done, len(self._files)))
        return self

    def faults(self) -> Iterator[Fault]:
        """One fault for each damaged chunk."""
        with ThreadPoolExecutor(READ_THREADS) as threads:
            yield from filter(None, threads.map(self._fault, range(len(self._files))))

    def _fault(self, i: int) -> Fault | None:
        try:
            content = read_regular(
                self._files[i], self._file_bytes
            )  # threads read in parallel; page faults of a mapping are serial
        except OSError as error:
            return self._damaged(i, error.strerror or str(error))
        if len(content) != self._file_bytes:
            return self._damaged(i, f"{len(content):,} bytes, expected {self._file_bytes:,}")
        actual = google_crc32c.value(np.frombuffer(content, np.uint8)[:-CRC_BYTES])
        stored = int.from_bytes(content[-CRC_BYTES:], "little")
        return None if actual == stored else self._damaged(i, f"crc32c {actual:08x}, expected {stored:08x}")

    def _damaged(self, i: int, problem: str) -> Fault:
        return Fault(f"damaged chunk {self._files[i]} ({problem})", self._remedy(self._indices[i]))

    def _reserve(self, num_bytes: int) -> mmap.mmap:
        """Reserve addresses, which takes no memory."""
        try:
            return mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANON, mmap.PROT_READ)
        except (OSError, OverflowError, ValueError) as error:
            message = f"{self._folder}: {num_bytes:,} bytes cannot be mapped ({error})"
            raise DamagedCacheError(Fault(message, "train with --embeddings chunks")) from error

    def _map(self, i: int, address: int) -> None:
        try:
            descriptor = open_regular(self._files[i])
        except FileNotFoundError:
            raise DamagedCacheError(Fault(f"{self._files[i]} is absent", self._remedy(self._indices[i]))) from None
        except OSError as error:
            raise DamagedCacheError(self._damaged(i, error.strerror or str(error))) from error
        try:
            size = os.fstat(descriptor).st_size
            if size != self._file_bytes:
                raise DamagedCacheError(self._damaged(i, f"{size:,} bytes, expected {self._file_bytes:,}"))
            flags = mmap.MAP_SHARED | MAP_FIXED
            if _libc.mmap(address, size, mmap.PROT_READ, flags, descriptor, 0) != address:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(self._files[i]))
        finally:
            os.close(descriptor)


def _require_whole_rows(array: zarr.Array[Any], folder: Path) -> None:
    """Raise unless an array's chunks are whole rows of one view, as raw bytes.

    Raises:
        DamagedCacheError: they are not.
    """
    axis = min(array.ndim - 1, 1)
    try:
        require_raw(array)
        if array.chunks[:axis] != (1,) * axis or array.chunks[axis + 1 :] != array.shape[axis + 1 :]:
            raise WrongLayoutError(f"stored in chunks {array.chunks}, expected whole rows")
    except WrongLayoutError as error:
        raise DamagedCacheError(Fault(f"{folder}: {error}", "cache again")) from error
