"""Image embeddings of a run: on the device, in mapped chunk files, or read by whole chunks through a buffer.

Reading has two halves: `read` is work of the host, done ahead of the step by the loader's thread; `HostRows.to` is what
the step does on the device.

N images, V views, D features, b rows of a read.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.format import EMB
from ...cache.progress import OnProgress, Progress, ignore_progress
from ...cache.read.cache import Cache
from ...cache.storage.mmap import MmapRows
from ..device import free_bytes
from ..errors import DistillError
from ..train_settings import EmbeddingSettings
from .shuffle import Chunk, ChunkShuffle

READ_THREADS = 4
SHARE_OF_MEMORY = 0.5  # of the free memory, that embeddings may take by themselves
NUM_POOLS = 3  # in the buffer of chunks: a batch may lie in two pools while the next one is read


class HostRows(Protocol):
    """Embeddings that were read ahead of a step; a tensor in pinned memory is one form of them."""

    def to(self, device: torch.device, *, non_blocking: bool) -> Tensor:
        """Embeddings `[b, D]` on the device."""


@dataclass(frozen=True, slots=True)
class TableRows:
    """Rows of a table that the device holds: only their numbers travel.

    Attributes:
        table: `[V N, D]`, on the device.
        index: `[b]`, in pinned memory where the device is a GPU.
    """

    table: Tensor
    index: Tensor

    def to(self, device: torch.device, *, non_blocking: bool) -> Tensor:
        """Embeddings `[b, D]`, gathered on the device."""
        return self.table[self.index.to(device, non_blocking=non_blocking)]


class EmbeddingSource(ABC):
    """Embeddings of a cache, by row and view.

    Attributes:
        chunk_shuffle: how rows must be shuffled for this source; None where any row is read as fast as any other.
        num_views: V.
    """

    chunk_shuffle: ChunkShuffle | None = None
    num_views: int = 1

    @abstractmethod
    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64] | None = None) -> HostRows:
        """Read some rows as far as the host can do it ahead of the step.

        Args:
            rows: `[b]`, of images.
            views: `[b]`, the view of each image; by default the plain one.
        """

    def hold(self, chunks: Collection[Chunk]) -> None:  # noqa: B027 (most sources have nothing to do)
        """Keep these chunks in memory and no others; with a chunk shuffle, called before their rows are read."""

    def close(self) -> None:  # noqa: B027
        """Free threads and memory."""


class OnDevice(EmbeddingSource):
    """All embeddings in the device's memory."""

    def __init__(self, image_emb: Tensor) -> None:
        """Take a table `[V, N, D]`."""
        self.num_views, self._num_rows = image_emb.shape[:2]
        self._table = image_emb.flatten(0, 1)

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64] | None = None) -> TableRows:
        """Numbers of the table's rows."""
        index = torch.from_numpy(rows if views is None else views * self._num_rows + rows)
        return TableRows(self._table, index.pin_memory() if self._table.is_cuda else index)

    def subset(self, rows: NDArray[np.int64]) -> Tensor:
        """Plain views of distinct, ascending rows for the whole run; no copy if these are all rows."""
        if len(rows) == self._num_rows:
            return self._table[: len(rows)]
        return self.read(rows).to(self._table.device, non_blocking=True)


class OnHost(EmbeddingSource):
    """Embeddings any row of which is read at once, as from mapped chunk files."""

    def __init__(
        self, take: Sequence[Callable[[NDArray[np.int64]], NDArray[np.float16]]], device: torch.device
    ) -> None:
        """Read from V functions, one a view, each of which takes rows `[b]` and gives `[b, D]`."""
        self.num_views = len(take)
        self._take, self._device = take, device

    def read(self, rows: NDArray[np.int64], views: NDArray[np.int64] | None = None) -> Tensor:
        """Embeddings `[b, D] float16`, in pinned memory where the device is a GPU."""
        emb = torch.from_numpy(self._gather(rows, views))
        return emb.pin_memory() if self._device.type == "cuda" else emb

    def _gather(self, rows: NDArray[np.int64], views: NDArray[np.int64] | None) -> NDArray[np.float16]:
        if views is None or self.num_views == 1:
            return self._take[0](rows)
        order = np.argsort(views, kind="stable")
        edges = np.searchsorted(views[order], np.arange(1, self.num_views))
        parts = [take(rows[part]) for take, part in zip(self._take, np.split(order, edges), strict=True)]
        emb = np.empty((len(rows), parts[0].shape[1]), np.float16)
        emb[order] = np.concatenate(parts)
        return emb


class Buffered(OnHost):
    """Embeddings that are read by whole chunks, as from an object store; `hold` names the chunks in memory."""

    def __init__(
        self,
        read_chunk: Callable[[Chunk], NDArray[np.float16]],
        dim: int,
        chunk_shuffle: ChunkShuffle,
        device: torch.device,
        num_views: int = 1,
    ) -> None:
        """Read chunk by chunk.

        Args:
            read_chunk: gives the rows `[R, D]` of a chunk.
            dim: D.
            chunk_shuffle: sizes of chunks and pools.
            device: where the embeddings are needed.
            num_views: V.
        """
        super().__init__((), device)
        self.chunk_shuffle, self.num_views = chunk_shuffle, num_views
        self._chunk_rows, self._read_chunk, self._dim = chunk_shuffle.chunk_rows, read_chunk, dim
        self._chunks: dict[Chunk, Future[NDArray[np.float16]]] = {}
        self._threads = ThreadPoolExecutor(READ_THREADS, "chunks")

    def hold(self, chunks: Collection[Chunk]) -> None:
        """Start to read the chunks that are not in memory, and drop all others."""
        for chunk in self._chunks.keys() - set(chunks):
            self._chunks.pop(chunk).cancel()
        for chunk in chunks:
            if chunk not in self._chunks:
                self._chunks[chunk] = self._threads.submit(self._read_chunk, chunk)

    def close(self) -> None:
        """Stop the threads; reads that have not begun are cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _gather(self, rows: NDArray[np.int64], views: NDArray[np.int64] | None) -> NDArray[np.float16]:
        emb = np.empty((len(rows), self._dim), np.float16)
        numbers, row_in_chunk = np.divmod(rows, self._chunk_rows)
        chunks = np.stack([np.zeros_like(rows) if views is None else views, numbers])
        for view, number in np.unique(chunks, axis=1).T.tolist():
            in_chunk = (chunks == [[view], [number]]).all(0)
            emb[in_chunk] = self._chunks[view, number].result()[row_in_chunk[in_chunk]]
        return emb


def open_images(
    cache: Cache, settings: EmbeddingSettings, device: torch.device, on_progress: OnProgress = ignore_progress
) -> EmbeddingSource:
    """Open the embeddings of a cache at the place that `--embeddings` names, or the nearest one that holds them.

    Every chunk is checked against its checksum before it is trusted: here, or when it is first read.

    Args:
        cache: sealed.
        settings: place and views.
        device: where the embeddings are needed.
        on_progress: called as chunks are checked, if they are checked here.

    Raises:
        CacheError: a chunk is absent or damaged, or a cache is to be mapped that is not a local folder.
        DistillError: the cache has fewer views, or is not a local folder and does not fit where `auto` would hold it.
    """
    info, chunk_shuffle = cache.info, resolve_chunk_shuffle(cache, settings)
    num_views, place = resolve_num_views(cache, settings.views), settings.embeddings
    if place == "auto":
        fits = fits_in_memory(2 * num_views * len(cache) * info.encoder.dim, device)
        place = "device" if fits else "mapped"
        if not fits and not cache.arrays.is_folder:  # another order is another run, so it is not chosen in silence
            raise DistillError(
                f"{cache.path}: its embeddings would take more than half of the free memory of {device}: pass "
                "--embeddings chunks to read them in shuffled order, or device to hold them there all the same"
            )

    def read_chunk(chunk: Chunk) -> NDArray[np.float16]:
        view, number = chunk
        rows = cache.chunk_slice(number)
        return cache.emb_rows(np.arange(rows.start, rows.stop), view)

    if chunk_shuffle is not None:
        return Buffered(read_chunk, info.encoder.dim, chunk_shuffle, device, num_views)
    if place == "device" and not cache.arrays.is_folder:
        return OnDevice(_read_to_device(cache, read_chunk, num_views, device, on_progress))
    views = _map_views(cache, num_views, on_progress)
    if place == "mapped":
        return OnHost([rows.take for rows in views], device)
    return OnDevice(copy_to_device(views, info.chunk_rows, device))


def resolve_num_views(cache: Cache, views: str | int) -> int:
    """Number of views of an image that a run draws from, given `--views`.

    Raises:
        DistillError: the cache has fewer.
    """
    stored = cache.info.num_views
    if views == "all":
        return stored
    if int(views) > stored:
        raise DistillError(
            f"--views {views}: {cache.path} has {stored}: run its `clipglot cache` command again with --views"
        )
    return int(views)


def resolve_chunk_shuffle(cache: Cache, settings: EmbeddingSettings) -> ChunkShuffle | None:
    """Sizes of the shuffle of `--embeddings chunks` within `--buffer-gb`; None for other places.

    Raises:
        DistillError: the buffer is smaller than one chunk a pool.
    """
    if settings.embeddings != "chunks":
        return None
    info = cache.info
    pool_bytes = settings.buffer_gb * 1e9 / NUM_POOLS
    chunk_bytes = 2 * info.chunk_rows * info.encoder.dim
    pool_chunks = int(pool_bytes / chunk_bytes)
    if pool_chunks < 1:
        least = math.ceil(NUM_POOLS * chunk_bytes / 1e9 * 1e6) / 1e6
        raise DistillError(
            f"--buffer-gb {settings.buffer_gb:g}: the buffer must hold {NUM_POOLS} chunks of {cache.path}, "
            f"{chunk_bytes / 1e6:.3g} MB each: pass at least {least}"
        )
    return ChunkShuffle(chunk_rows=info.chunk_rows, pool_chunks=min(pool_chunks, cache.num_chunks))


def fits_in_memory(num_bytes: int, device: torch.device) -> bool:
    """Whether embeddings take at most half of the device's free memory."""
    return num_bytes <= SHARE_OF_MEMORY * free_bytes(device)


def _map_views(cache: Cache, num_views: int, on_progress: OnProgress) -> list[MmapRows]:
    """Rows of some views, mapped and checked."""
    views = [cache.mapped(EMB, view) for view in range(num_views)]
    total = num_views * cache.num_chunks
    for view, rows in enumerate(views):
        before = view * cache.num_chunks

        def show(progress: Progress, before: int = before) -> None:
            on_progress(Progress(progress.stage, before + progress.done, total))

        rows.check(show)
    return views


def copy_to_device(views: list[MmapRows], chunk_rows: int, device: torch.device) -> Tensor:
    """All rows of some views, `[V, N, D]`; host memory holds a chunk at a time."""
    image_emb = torch.empty((len(views), *views[0].shape), dtype=torch.float16, device=device)
    for table, rows in zip(image_emb, views, strict=True):
        for start in range(0, len(rows), chunk_rows):
            table[start : start + chunk_rows].copy_(torch.from_numpy(rows.read(start, start + chunk_rows)))
    return image_emb


def _read_to_device(
    cache: Cache,
    read_chunk: Callable[[Chunk], NDArray[np.float16]],
    num_views: int,
    device: torch.device,
    on_progress: OnProgress,
) -> Tensor:
    """All rows of some views, `[V, N, D]`, of a cache that cannot be mapped; the host holds a chunk for each thread."""
    image_emb = torch.empty((num_views, len(cache), cache.info.encoder.dim), dtype=torch.float16, device=device)
    chunks = [(view, number) for view in range(num_views) for number in range(cache.num_chunks)]

    def copy(chunk: Chunk) -> None:
        view, number = chunk
        image_emb[view, cache.chunk_slice(number)].copy_(torch.from_numpy(read_chunk(chunk)))

    with ThreadPoolExecutor(READ_THREADS) as threads:
        try:
            for done, _ in enumerate(threads.map(copy, chunks), 1):
                on_progress(Progress("check", done, len(chunks)))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return image_emb
