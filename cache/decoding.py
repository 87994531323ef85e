"""Worker processes that decode pictures into shared memory, a block at a time, a bounded number of blocks ahead."""

import mmap
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CacheError
from .format import Status
from .pictures import Geometry, RejectedPictureError, decode, open_below, require_image_root
from .processes import worker_pool

SLOTS_AHEAD = 4  # blocks that may wait, decoded, for the tower


@dataclass(frozen=True, slots=True)
class DecodedBlock:
    """A run of rows, decoded.

    Attributes:
        start: the first row.
        pixels: `[rows, height, width, 3] uint8`; zeros where a picture was rejected. A view of shared memory,
            valid until the next block is asked for.
        status: `[rows] uint8`; `Status.EMBEDDED` for pictures that decoded.
        decode_s: seconds the worker spent on the block.
    """

    start: int
    pixels: NDArray[np.uint8]
    status: NDArray[np.uint8]
    decode_s: float


@dataclass(frozen=True)
class _SharedMemory:
    """Memory that parent and workers share: a file without a name, which lives as long as a process holds it.

    Named segments (`multiprocessing.shared_memory`) stay in /dev/shm when a whole job is killed, and fall under its
    limit, 64 MB in a container.
    """

    descriptor: int
    shape: tuple[int, ...]

    @classmethod
    def create(cls, shape: tuple[int, ...]) -> "_SharedMemory":
        descriptor = _open_nameless()
        os.ftruncate(descriptor, int(np.prod(shape)))
        return cls(descriptor, shape)

    def view(self) -> NDArray[np.uint8]:
        """All of it, as `[slots, rows, height, width, 3] uint8`."""
        return np.frombuffer(mmap.mmap(self.descriptor, 0), np.uint8).reshape(self.shape)

    def __reduce__(self) -> Any:
        """How a worker gets it while it starts: by its own copy of the descriptor."""
        return _inherit, (DupFd(self.descriptor), self.shape)


def _open_nameless() -> int:
    """A descriptor of a new file without a name: in memory on Linux, in the temporary folder elsewhere."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clipglot")
    with tempfile.TemporaryFile(prefix="clipglot") as file:
        return os.dup(file.fileno())


def _inherit(duplicate: Any, shape: tuple[int, ...]) -> _SharedMemory:
    return _SharedMemory(duplicate.detach(), shape)


@dataclass(frozen=True, slots=True)
class _Worker:
    """What a worker process knows; set once, when it starts."""

    geometry: Geometry
    root: Path
    max_pixels: int
    slots: NDArray[np.uint8]


_worker: _Worker | None = None


class BlockDecoder:
    """Decodes blocks of pictures in worker processes, in order.

    Memory is `workers + SLOTS_AHEAD` blocks, whatever the number of pictures.
    """

    def __init__(self, root: Path, geometry: Geometry, *, block_rows: int, workers: int, max_pixels: int) -> None:
        """Start the workers.

        Args:
            root: the image root; nothing outside it is read.
            geometry: the tower's resize and crop.
            block_rows: most rows in a block.
            workers: number of processes.
            max_pixels: larger pictures are rejected.

        Raises:
            CacheError: no image root.
        """
        require_image_root(root)
        shape = (workers + SLOTS_AHEAD, block_rows, geometry.height, geometry.width, 3)
        self._memory = _SharedMemory.create(shape)
        self._slots = self._memory.view()
        self._free = list(range(shape[0]))
        self._in_flight: deque[tuple[int, int, int, Future[tuple[bytes, float]]]] = deque()
        known = (geometry, root.resolve(), max_pixels, self._memory)
        self._pool = worker_pool(workers, __name__, _start_worker, *known)

    def close(self) -> None:
        """Stop the workers; the memory goes with the last view of it."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        del self._slots
        os.close(self._memory.descriptor)

    def decode(self, blocks: Iterable[tuple[int, list[str]]]) -> Iterator[DecodedBlock]:
        """Decode blocks of (first row, keys), in the order given."""
        waiting = iter(blocks)
        while True:
            while self._free and (block := next(waiting, None)) is not None:
                self._submit(*block)
            if not self._in_flight:
                return
            slot, start, rows, future = self._in_flight.popleft()
            try:
                status, decode_s = future.result()
            except BrokenProcessPool as error:
                raise _worker_died(start) from error
            yield DecodedBlock(start, self._slots[slot, :rows], np.frombuffer(status, np.uint8), decode_s)
            self._free.append(slot)

    def _submit(self, start: int, keys: list[str]) -> None:
        slot = self._free.pop()
        try:
            future = self._pool.submit(_decode_block, slot, keys)
        except BrokenProcessPool as error:
            raise _worker_died(start) from error
        self._in_flight.append((slot, start, len(keys), future))


def _worker_died(start: int) -> CacheError:
    return CacheError(
        f"a decoding process died near row {start}, perhaps for want of memory: "
        "run the same command again to resume, with fewer --workers"
    )


@contextmanager
def block_decoder(root: Path, geometry: Geometry, **options: Any) -> Iterator[BlockDecoder]:
    """A `BlockDecoder` that is closed at the end of the block."""
    decoder = BlockDecoder(root, geometry, **options)
    try:
        yield decoder
    finally:
        decoder.close()


def _start_worker(geometry: Geometry, root: Path, max_pixels: int, memory: _SharedMemory) -> None:
    global _worker
    _worker = _Worker(geometry, root, max_pixels, memory.view())


def _decode_block(slot: int, keys: list[str]) -> tuple[bytes, float]:
    """Decode pictures into a slot; returns a status a picture, and the seconds spent."""
    assert _worker is not None
    started = time.perf_counter()
    status = bytearray(len(keys))
    for i, key in enumerate(keys):
        try:
            with open_below(_worker.root, key) as file:
                _worker.slots[slot, i] = decode(file, _worker.geometry, _worker.max_pixels)
            status[i] = Status.EMBEDDED
        except RejectedPictureError as rejected:
            _worker.slots[slot, i] = 0
            status[i] = rejected.status
    return bytes(status), time.perf_counter() - started
