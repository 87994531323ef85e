"""Worker processes that decode images into shared memory, a block at a time, a bounded number of blocks ahead."""

import mmap
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from io import BytesIO
from multiprocessing.reduction import DupFd
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import CacheError
from ..format import Augmentation, Decoding, Status
from ..processes import worker_pool
from ..sources.source import RejectedImageError
from .augment import augmented
from .image_decode import ResizeCrop, decode_views


@dataclass(frozen=True)
class SharedMemory:
    """Memory that parent and workers share: a file without a name, which lives as long as a process holds it.

    Named segments (`multiprocessing.shared_memory`) stay in /dev/shm when a whole job is killed, and fall under its
    limit, 64 MB in a container.
    """

    descriptor: int
    shape: tuple[int, ...]

    @classmethod
    def create(cls, shape: tuple[int, ...]) -> "SharedMemory":
        """Zeros of a shape."""
        descriptor = _open_nameless()
        os.ftruncate(descriptor, int(np.prod(shape)))
        return cls(descriptor, shape)

    def view(self) -> NDArray[np.uint8]:
        """All of it, as `[slots, views, rows, height, width, 3] uint8`."""
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


def _inherit(duplicate: Any, shape: tuple[int, ...]) -> SharedMemory:
    return SharedMemory(duplicate.detach(), shape)


SLOTS_AHEAD = 4  # blocks that may wait, decoded, for the tower
MOST_DEATHS = 5  # of processes in succession; more are not for single images to answer for
HASH_BYTES = 16
BLOCKS_KEPT = 4  # of memory that Pillow gives back otherwise, page by page for every image: a quarter of its time
Views = tuple[int, ...]
_Decoded = tuple[bytes, bytes, float, float]


class BlockReader(Protocol):
    """Gives a worker the encoded images; see `sources.ImageReader`."""

    def read(self, start: int, keys: Sequence[str], locators: NDArray[np.int64] | None) -> Iterator[bytes | Status]:
        """The bytes of the images from row `start` on, or why there are none."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """A run of rows to decode.

    Attributes:
        start: the first row.
        keys: of its images.
        locators: `[rows, 3]`; None where keys are paths.
        views: which views of them are wanted, ascending.
    """

    start: int
    keys: list[str]
    locators: NDArray[np.int64] | None
    views: Views


@dataclass(frozen=True, slots=True)
class DecodedBlock:
    """A run of rows, decoded.

    Attributes:
        start: the first row.
        views: which of V views these are, ascending.
        pixels: `[views, rows, height, width, 3] uint8`; zeros where an image was rejected. A part of shared memory,
            valid until the next block is asked for.
        status: `[rows] uint8`; `Status.EMBEDDED` for images that decoded.
        hash: `[rows, 2] uint64`, blake2b of each image's bytes; zeros where none could be read.
        read_s: seconds the worker spent reading the block.
        decode_s: seconds it spent decoding it.
    """

    start: int
    views: Views
    pixels: NDArray[np.uint8]
    status: NDArray[np.uint8]
    hash: NDArray[np.uint64]
    read_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class _Worker:
    """What a worker process knows; set once, when it starts."""

    geometry: ResizeCrop
    reader: BlockReader
    max_pixels: int
    decoding: Decoding
    augmentation: Augmentation
    slots: NDArray[np.uint8]

    def renderings(self, row: int, views: Views) -> list[Callable[[Image.Image], Image.Image]]:
        """What makes each of some views of an image."""
        return [
            partial(augmented, geometry=self.geometry, given=self.augmentation, row=row, view=view)
            if view
            else self.geometry.apply
            for view in views
        ]


_worker: _Worker | None = None


class BlockDecoder:
    """Decodes blocks of images in worker processes, in order.

    Memory is `workers + SLOTS_AHEAD` blocks of all views, whatever the number of images.

    Attributes:
        num_died: processes that were replaced, because they died.
    """

    def __init__(
        self,
        reader: BlockReader,
        geometry: ResizeCrop,
        *,
        block_rows: int,
        workers: int,
        max_pixels: int,
        decoding: Decoding = "exact",
        num_views: int = 1,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Start the workers.

        Args:
            reader: of the images; each worker has a copy.
            geometry: the tower's resize and crop.
            block_rows: most rows in a block.
            workers: number of processes.
            max_pixels: larger images are rejected.
            decoding: of JPEGs, at full size or at a part of it.
            num_views: most views of a block.
            augmentation: what makes the views beyond the plain one, where there are any.
        """
        shape = (workers + SLOTS_AHEAD, num_views, block_rows, geometry.height, geometry.width, 3)
        self._memory = SharedMemory.create(shape)
        self._slots = self._memory.view()
        self._free = list(range(shape[0]))
        self._in_flight: deque[tuple[int, Block, Future[_Decoded]]] = deque()
        self._known = (geometry, reader, max_pixels, decoding, augmentation or Augmentation(), self._memory)
        self._workers = workers
        self._pool = self._new_pool()
        self._deaths = 0  # since something was decoded
        self.num_died = 0

    def close(self) -> None:
        """Stop the workers; the memory goes with the last view of it."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        del self._slots
        os.close(self._memory.descriptor)

    def decode(self, blocks: Iterable[Block]) -> Iterator[DecodedBlock]:
        """Decode blocks in the order given. An image that ends its process is damaged.

        It is held to be that one if it does so alone.

        Raises:
            CacheError: processes die one after another, so that it is not the images.
        """
        waiting = iter(blocks)
        while True:
            while self._free and (block := next(waiting, None)) is not None:
                slot = self._free.pop()
                self._in_flight.append((slot, block, self._submit(slot, block)))
            if not self._in_flight:
                return
            slot, block, future = self._in_flight.popleft()
            try:
                decoded = future.result()
                self._deaths = 0
            except BrokenProcessPool:
                decoded = self._decode_apart(slot, block)
            status, hashes, read_s, decode_s = decoded
            pixels = self._slots[slot, : len(block.views), : len(block.keys)]
            yield DecodedBlock(
                start=block.start,
                views=block.views,
                pixels=pixels,
                status=np.frombuffer(status, np.uint8),
                hash=np.frombuffer(hashes, "<u8").reshape(-1, 2),
                read_s=read_s,
                decode_s=decode_s,
            )
            self._free.append(slot)

    def _new_pool(self) -> ProcessPoolExecutor:
        return worker_pool(self._workers, __name__, _start_worker, *self._known)

    def _submit(self, slot: int, block: Block, offset: int = 0) -> Future[_Decoded]:
        try:
            return self._pool.submit(_decode_block, slot, block, offset)
        except BrokenProcessPool as error:
            broken: Future[_Decoded] = Future()
            broken.set_exception(error)
            return broken

    def _decode_apart(self, slot: int, block: Block) -> _Decoded:
        """Decode a block that was under way when a process died, with nothing beside it; the others begin anew."""
        self._replace_pool()
        decoded = self._tried(slot, block) or self._decode_by_row(slot, block)
        for place, (other_slot, other, future) in enumerate(self._in_flight):
            if future.exception():  # all are done, for they were of a pool that is gone
                self._in_flight[place] = other_slot, other, self._submit(other_slot, other)
        return decoded

    def _decode_by_row(self, slot: int, block: Block) -> _Decoded:
        """Decode a block of which some image ends the process: that one is damaged."""
        decoded: list[_Decoded] = []
        for i, key in enumerate(block.keys):
            locators = None if block.locators is None else block.locators[i : i + 1]
            found = self._tried(slot, Block(block.start + i, [key], locators, block.views), i)
            if found is None and self._deaths > MOST_DEATHS:
                raise CacheError(
                    f"decoding processes die one after another, the last one at row {block.start + i} ({key}), perhaps "
                    "for want of memory: run the same command again to resume, with fewer --workers"
                )
            if found is None:
                self._slots[slot, : len(block.views), i] = 0
            decoded.append(found or (bytes([Status.DAMAGED]), bytes(HASH_BYTES), 0.0, 0.0))
        status, hashes, read_s, decode_s = zip(*decoded, strict=True)
        return b"".join(status), b"".join(hashes), sum(read_s), sum(decode_s)

    def _tried(self, slot: int, block: Block, offset: int = 0) -> _Decoded | None:
        """A block, decoded with nothing beside it; None if that ended the process."""
        try:
            decoded = self._submit(slot, block, offset).result()
        except BrokenProcessPool:
            self._replace_pool()
            return None
        self._deaths = 0
        return decoded

    def _replace_pool(self) -> None:
        self._pool.shutdown(wait=True)
        self._pool = self._new_pool()
        self._deaths += 1
        self.num_died += 1


@contextmanager
def block_decoder(reader: BlockReader, geometry: ResizeCrop, **options: Any) -> Iterator[BlockDecoder]:
    """A `BlockDecoder` that is closed at the end of the block."""
    decoder = BlockDecoder(reader, geometry, **options)
    try:
        yield decoder
    finally:
        decoder.close()


def _start_worker(
    geometry: ResizeCrop,
    reader: BlockReader,
    max_pixels: int,
    decoding: Decoding,
    augmentation: Augmentation,
    memory: SharedMemory,
) -> None:
    global _worker
    Image.core.set_blocks_max(BLOCKS_KEPT)  # type: ignore[attr-defined]  # documented, and not exported
    _worker = _Worker(geometry, reader, max_pixels, decoding, augmentation, memory.view())


def _decode_block(slot: int, block: Block, offset: int) -> _Decoded:
    """Decode images into a slot, from its row `offset` on.

    Returns:
        A status and a hash of each, and the seconds spent reading and decoding.
    """
    assert _worker is not None
    status, hashes, read_s, decode_s = bytearray(len(block.keys)), bytearray(), 0.0, 0.0
    found = _worker.reader.read(block.start, block.keys, block.locators)
    for i in range(len(block.keys)):
        pixels = _worker.slots[slot, : len(block.views), offset + i]
        started = time.perf_counter()
        encoded = next(found)
        hashes += (
            bytes(HASH_BYTES) if isinstance(encoded, Status) else blake2b(encoded, digest_size=HASH_BYTES).digest()
        )
        read_at = time.perf_counter()
        try:
            if isinstance(encoded, Status):
                raise RejectedImageError(encoded)
            renderings = _worker.renderings(block.start + i, block.views)
            scaled = _worker.decoding == "scaled"
            pixels[:] = decode_views(BytesIO(encoded), _worker.geometry, renderings, _worker.max_pixels, scaled=scaled)
            status[i] = Status.EMBEDDED
        except RejectedImageError as rejected:
            pixels[:] = 0
            status[i] = rejected.status
        read_s += read_at - started
        decode_s += time.perf_counter() - read_at
    return bytes(status), bytes(hashes), read_s, decode_s
