"""Pool of worker processes that decode images into shared memory, a bounded number of blocks ahead."""

import mmap
import os
import pickle
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from io import BytesIO
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import CacheError
from ..format import Augmentation, Decoding, RejectedImageError, Status
from ..processes import CONTEXT, kill_workers, worker_pool
from .augment import augmented
from .decode_limits import DecodeMemory, DecodeTimers, decode_memory_bytes, max_decode_s
from .image_decode import ResizeCrop, decode_views

SLOTS_AHEAD = 4  # decoded blocks that may wait for the tower
CHECK_S = 1.0  # between checks for images that take too long
MAX_DEATHS = 5  # worker deaths in a row; more of them are not the fault of single images
HASH_BYTES = 16
KEPT_BLOCKS = 4  # of Pillow's memory; otherwise it frees them page by page for every image: a quarter of its time

ViewNumbers = tuple[int, ...]
"""Views of an image, ascending: 0 is the plain one, the others are augmented."""


@dataclass(frozen=True)
class SharedMemory:
    """Memory shared by parent and workers: a file without a name, which lives as long as a process has it open.

    Named segments (`multiprocessing.shared_memory`) stay in /dev/shm when a whole job is killed, and count towards its
    limit, 64 MB in a container.
    """

    descriptor: int
    shape: tuple[int, ...]

    @classmethod
    def create(cls, shape: tuple[int, ...]) -> "SharedMemory":
        """Allocate zeros of a shape."""
        descriptor = _open_nameless()
        os.ftruncate(descriptor, int(np.prod(shape)))
        return cls(descriptor, shape)

    def view(self) -> NDArray[np.uint8]:
        """All of it, as `[slots, views, rows, height, width, 3] uint8`."""
        return np.frombuffer(mmap.mmap(self.descriptor, 0), np.uint8).reshape(self.shape)

    def __reduce__(self) -> Any:
        """Pass it to a worker that is starting, with a copy of the descriptor."""
        return _inherit, (DupFd(self.descriptor), self.shape)


def _open_nameless() -> int:
    """A descriptor of a new file without a name: in memory on Linux, in the temporary folder elsewhere."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clipglot")
    with tempfile.TemporaryFile(prefix="clipglot") as file:
        return os.dup(file.fileno())


def _inherit(duplicate: Any, shape: tuple[int, ...]) -> SharedMemory:
    return SharedMemory(duplicate.detach(), shape)


class BlockReader(Protocol):
    """Reads the encoded images of a block, in a worker; `sources.reader.ImageReader` is the real one."""

    def read(self, start: int, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """Yield the bytes of the images from row `start` on, or why an image has none."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """A run of rows to decode.

    Attributes:
        start: the first row.
        keys: of its images.
        locators: `[rows, 3]`; None where keys are paths.
        views: to make of each image.
    """

    start: int
    keys: list[str]
    locators: NDArray[np.int64] | None
    views: ViewNumbers


@dataclass(frozen=True, slots=True)
class DecodedBlock:
    """A run of rows, decoded.

    Attributes:
        start: the first row.
        views: the V views that were made of each image.
        pixels: `[V, rows, height, width, 3] uint8`; zeros where an image was rejected. A part of shared memory, valid
            until the next block is asked for.
        status: `[rows] uint8`; `Status.EMBEDDED` for images that decoded.
        hash: `[rows, 2] uint64`, blake2b of each image's bytes; zeros where none could be read.
    """

    start: int
    views: ViewNumbers
    pixels: NDArray[np.uint8]
    status: NDArray[np.uint8]
    hash: NDArray[np.uint64]


class _Outcome(NamedTuple):
    """What a worker returns for a block; the pixels are in shared memory.

    Attributes:
        status: a byte for each image.
        hashes: `HASH_BYTES` for each image.
        read_s: seconds spent reading.
        decode_s: seconds spent decoding.
    """

    status: bytes
    hashes: bytes
    read_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class _WorkerState:
    """What a worker process needs for every block; set once, when it starts."""

    geometry: ResizeCrop
    reader: BlockReader
    max_pixels: int
    decoding: Decoding
    augmentation: Augmentation
    slots: NDArray[np.uint8]
    timers: DecodeTimers
    memory: DecodeMemory

    def renderings(self, row: int, views: ViewNumbers) -> list[Callable[[Image.Image], Image.Image]]:
        """The functions that make some views of an image."""
        return [
            partial(augmented, geometry=self.geometry, given=self.augmentation, row=row, view=view)
            if view
            else self.geometry.apply
            for view in views
        ]


_state: _WorkerState | None = None


class DecodePool:
    """Decodes blocks of images in worker processes, in order.

    Memory is `num_workers + SLOTS_AHEAD` blocks of all views, whatever the number of images.

    Attributes:
        num_died: workers that died and were replaced; those of images that took too long do not count.
        read_s: seconds the workers spent reading, for the blocks handed out so far.
        decode_s: seconds they spent decoding these.
        wait_s: seconds the caller waited for a block.
    """

    def __init__(
        self,
        reader: BlockReader,
        geometry: ResizeCrop,
        *,
        block_rows: int,
        num_workers: int,
        max_pixels: int,
        decoding: Decoding = "exact",
        num_views: int = 1,
        augmentation: Augmentation | None = None,
        image_s: float | None = None,
    ) -> None:
        """Start the workers.

        Args:
            reader: of the images; each worker has a copy.
            geometry: the tower's resize and crop.
            block_rows: most rows in a block.
            num_workers: processes.
            max_pixels: larger images are rejected.
            decoding: of JPEGs, at full size or at a part of it.
            num_views: most views of a block.
            augmentation: of the views beyond the plain one, where a block has any.
            image_s: processor time that an image may take, by default `max_decode_s`.
        """
        shape = (num_workers + SLOTS_AHEAD, num_views, block_rows, geometry.height, geometry.width, 3)
        self._memory = SharedMemory.create(shape)
        self._slots = self._memory.view()
        self._free = list(range(shape[0]))
        self._in_flight: deque[tuple[int, Block, Future[_Outcome]]] = deque()
        self._start_arguments = (geometry, reader, max_pixels, decoding, augmentation or Augmentation(), self._memory)
        self._needs_main = b"__main__" in pickle.dumps(reader)  # a source of the user's own script
        self._num_workers = num_workers
        self._image_s = max_decode_s(max_pixels) if image_s is None else image_s
        self._decode_bytes = decode_memory_bytes()
        self._timers = DecodeTimers(CONTEXT, shape[0])
        self._too_slow: set[int] = set()  # rows
        self._stopped_worker = False  # because its image took too long
        self._pool = self._new_pool()
        self._deaths = 0  # since a block was decoded
        self.num_died = 0
        self.read_s = self.decode_s = self.wait_s = 0.0

    def close(self) -> None:
        """Stop the workers; the memory is freed with the last view of it."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        del self._slots
        os.close(self._memory.descriptor)

    def decode(self, blocks: Iterable[Block]) -> Iterator[DecodedBlock]:
        """Decode blocks in the order given.

        When a worker dies, the blocks on their way are decoded again, one at a time, then image by image. An image that
        ends its worker while it is alone is damaged. A worker whose image takes too long is ended, and the image is
        left out.

        Raises:
            CacheError: workers die one after another, so the images are not the cause.
        """
        started = time.perf_counter()
        waiting = iter(blocks)
        while True:
            while self._free and (block := next(waiting, None)) is not None:
                slot = self._free.pop()
                self._in_flight.append((slot, block, self._submit(slot, block)))
            if not self._in_flight:
                return
            slot, block, future = self._in_flight.popleft()
            try:
                outcome = self._wait(future)
                self._deaths = 0
            except BrokenProcessPool:
                outcome = self._decode_again(slot, block)
            self.read_s += outcome.read_s
            self.decode_s += outcome.decode_s
            self.wait_s += time.perf_counter() - started
            yield DecodedBlock(
                start=block.start,
                views=block.views,
                pixels=self._slots[slot, : len(block.views), : len(block.keys)],
                status=np.frombuffer(outcome.status, np.uint8),
                hash=np.frombuffer(outcome.hashes, "<u8").reshape(-1, 2),
            )
            started = time.perf_counter()
            self._free.append(slot)

    def _new_pool(self) -> ProcessPoolExecutor:
        memory = DecodeMemory(CONTEXT, self._decode_bytes)  # a new one: a dead worker does not give back its claim
        arguments = (*self._start_arguments, self._timers, memory)
        return worker_pool(self._num_workers, __name__, _start_worker, *arguments, import_main=self._needs_main)

    def _wait(self, future: Future[_Outcome]) -> _Outcome:
        """Wait for a block, and end the workers whose image takes too long.

        Raises:
            BrokenProcessPool: a worker died or was ended.
        """
        while not wait([future], timeout=CHECK_S).done:
            for image in self._timers.overdue(self._image_s):
                self._too_slow.add(image.row)
                self._stopped_worker = True
                with suppress(ProcessLookupError):
                    os.kill(image.pid, signal.SIGKILL)
        return future.result()

    def _submit(self, slot: int, block: Block, offset: int = 0) -> Future[_Outcome]:
        try:
            too_slow = self._too_slow.intersection(range(block.start, block.start + len(block.keys)))
            return self._pool.submit(_decode_block, slot, block, offset, too_slow)
        except (BrokenProcessPool, OSError) as error:  # OSError: its thread has just closed the pipe to a new worker
            broken: Future[_Outcome] = Future()
            broken.set_exception(error if isinstance(error, BrokenProcessPool) else BrokenProcessPool(str(error)))
            return broken

    def _decode_again(self, slot: int, block: Block) -> _Outcome:
        """Decode a block that was on its way when a worker died, with no other beside it; then submit the others."""
        self._replace_pool()
        outcome = self._decode_alone(slot, block) or self._decode_by_row(slot, block)
        for place, (other_slot, other, future) in enumerate(self._in_flight):
            if future.exception():  # all are done, because their pool is gone
                self._in_flight[place] = other_slot, other, self._submit(other_slot, other)
        return outcome

    def _decode_by_row(self, slot: int, block: Block) -> _Outcome:
        """Decode a block image by image; an image that ends its worker is damaged."""
        outcomes: list[_Outcome] = []
        for i, key in enumerate(block.keys):
            locators = None if block.locators is None else block.locators[i : i + 1]
            outcome = self._decode_alone(slot, Block(block.start + i, [key], locators, block.views), i)
            if outcome is None and self._deaths > MAX_DEATHS:
                raise CacheError(
                    f"decoding processes die one after another, the last one at row {block.start + i} ({key}), perhaps "
                    "for lack of memory: run the same command again to resume, with fewer --num-workers"
                )
            if outcome is None:
                self._slots[slot, : len(block.views), i] = 0
                outcome = _Outcome(bytes([Status.DAMAGED]), bytes(HASH_BYTES), 0.0, 0.0)
            outcomes.append(outcome)
        status, hashes, read_s, decode_s = zip(*outcomes, strict=True)
        return _Outcome(b"".join(status), b"".join(hashes), sum(read_s), sum(decode_s))

    def _decode_alone(self, slot: int, block: Block, offset: int = 0) -> _Outcome | None:
        """Decode a block with no other beside it; None if an image ended the worker."""
        while True:
            try:
                outcome = self._wait(self._submit(slot, block, offset))
            except BrokenProcessPool:
                if not self._replace_pool():
                    return None
            else:
                self._deaths = 0
                return outcome

    def _replace_pool(self) -> bool:
        """Start new workers; return whether the old ones were ended because an image took too long."""
        kill_workers(self._pool)
        self._timers.reset()
        self._pool = self._new_pool()
        stopped, self._stopped_worker = self._stopped_worker, False
        self._deaths += not stopped
        self.num_died += not stopped
        return stopped


@contextmanager
def decode_pool(reader: BlockReader, geometry: ResizeCrop, **options: Any) -> Iterator[DecodePool]:
    """A `DecodePool` that is closed at the end of the block."""
    pool = DecodePool(reader, geometry, **options)
    try:
        yield pool
    finally:
        pool.close()


def _start_worker(
    geometry: ResizeCrop,
    reader: BlockReader,
    max_pixels: int,
    decoding: Decoding,
    augmentation: Augmentation,
    slots: SharedMemory,
    timers: DecodeTimers,
    memory: DecodeMemory,
) -> None:
    global _state
    Image.core.set_blocks_max(KEPT_BLOCKS)  # type: ignore[attr-defined]  # documented, and not exported
    _state = _WorkerState(geometry, reader, max_pixels, decoding, augmentation, slots.view(), timers, memory)


def _decode_block(slot: int, block: Block, offset: int, too_slow: set[int]) -> _Outcome:
    """Decode images, in a worker, into the rows of a slot from `offset` on; rows of `too_slow` are left out."""
    assert _state is not None
    status, hashes, read_s, decode_s = bytearray(len(block.keys)), bytearray(), 0.0, 0.0
    images = _state.reader.read(block.start, block.keys, block.locators)
    for i in range(len(block.keys)):
        pixels = _state.slots[slot, : len(block.views), offset + i]
        started = time.perf_counter()
        encoded = next(images)
        hashes += (
            bytes(HASH_BYTES) if isinstance(encoded, Status) else blake2b(encoded, digest_size=HASH_BYTES).digest()
        )
        read_at = time.perf_counter()
        try:
            if isinstance(encoded, Status):
                raise RejectedImageError(encoded)
            row = block.start + i
            if row in too_slow:
                raise RejectedImageError(Status.TOO_SLOW)
            with _state.timers.running(slot, row):
                pixels[:] = decode_views(
                    BytesIO(encoded),
                    _state.geometry,
                    _state.renderings(row, block.views),
                    _state.max_pixels,
                    scaled=_state.decoding == "scaled",
                    claim=_state.memory.claim,
                )
            status[i] = Status.EMBEDDED
        except RejectedImageError as rejected:
            pixels[:] = 0
            status[i] = rejected.status
        read_s += read_at - started
        decode_s += time.perf_counter() - read_at
    return _Outcome(bytes(status), bytes(hashes), read_s, decode_s)
