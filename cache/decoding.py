"""Worker processes that decode pictures into shared memory, a block at a time, a bounded number of blocks ahead."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CacheError
from .format import Status
from .pictures import Geometry, RejectedPictureError, decode, open_below

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


@dataclass(frozen=True, slots=True)
class _Worker:
    """What a worker process knows; set once, when it starts."""

    geometry: Geometry
    root: Path
    max_pixels: int
    memory: SharedMemory
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
            CacheError: no image root, or too little shared memory.
        """
        if not root.is_dir():
            raise CacheError(f"{root}: no such folder: pass --image-root")
        shape = (workers + SLOTS_AHEAD, block_rows, geometry.height, geometry.width, 3)
        self._memory = _reserve(int(np.prod(shape)))
        self._slots: NDArray[np.uint8] = np.ndarray(shape, np.uint8, self._memory.buf)
        self._free = list(range(shape[0]))
        self._in_flight: deque[tuple[int, int, int, Future[tuple[bytes, float]]]] = deque()
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(geometry, root.resolve(), max_pixels, self._memory.name, shape),
        )

    def close(self) -> None:
        """Stop the workers and free the shared memory."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        del self._slots
        self._memory.close()
        self._memory.unlink()

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
                raise CacheError(
                    f"a decoding process died near row {start}, perhaps for want of memory: "
                    "run the same command again to resume, with fewer --workers"
                ) from error
            yield DecodedBlock(start, self._slots[slot, :rows], np.frombuffer(status, np.uint8), decode_s)
            self._free.append(slot)

    def _submit(self, start: int, keys: list[str]) -> None:
        slot = self._free.pop()
        try:
            future = self._pool.submit(_decode_block, slot, keys)
        except BrokenProcessPool as error:
            raise CacheError(
                f"a decoding process died near row {start}: run the same command again to resume"
            ) from error
        self._in_flight.append((slot, start, len(keys), future))


@contextmanager
def block_decoder(root: Path, geometry: Geometry, **options: Any) -> Iterator[BlockDecoder]:
    """A `BlockDecoder` that is closed at the end of the block."""
    decoder = BlockDecoder(root, geometry, **options)
    try:
        yield decoder
    finally:
        decoder.close()


def _reserve(num_bytes: int) -> SharedMemory:
    """Shared memory that is really there.

    A plain allocation on a full /dev/shm succeeds and kills the process at the first write (SIGBUS).
    """
    memory = SharedMemory(create=True, size=num_bytes)
    try:
        os.posix_fallocate(memory._fd, 0, num_bytes)  # type: ignore[attr-defined]
    except OSError as error:
        memory.close()
        memory.unlink()
        raise CacheError(
            f"no {num_bytes / 2**20:.0f} MiB of shared memory for decoded pictures ({error.strerror}): "
            "lower --workers or --batch-size, or give the container more (docker run --shm-size=1g)"
        ) from error
    return memory


def _start_worker(geometry: Geometry, root: Path, max_pixels: int, memory_name: str, shape: tuple[int, ...]) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    memory = SharedMemory(memory_name)
    slots: NDArray[np.uint8] = np.ndarray(shape, np.uint8, memory.buf)
    _worker = _Worker(geometry, root, max_pixels, memory, slots)


def _die_with_parent() -> None:
    """A killed parent cannot stop its workers; without this they would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


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
