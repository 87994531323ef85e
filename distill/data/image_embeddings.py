"""Where a run reads its targets: on the device, from mapped chunk files, or whole chunks through a buffer.

Reading has two halves: `read` is host work, done ahead by the feeding thread; `to_device` is what is left to the step.
N images, V views, D features.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .shuffle import Chunk, ChunkShuffle

Rows = NDArray[np.int64]
READ_THREADS = 4


class EmbeddingSource(ABC):
    """The embeddings of a cache.

    Attributes:
        pooling: how rows must be shuffled for this source; None where any row is as near as any other.
        num_views: V.
    """

    pooling: ChunkShuffle | None = None
    num_views: int = 1

    @abstractmethod
    def read(self, rows: Rows, views: Rows | None = None) -> Tensor:
        """Whatever of some rows can be brought from the host ahead of the step.

        Args:
            rows: `[b]`, of images.
            views: `[b]`, which view of each; the plain one by default.
        """

    @abstractmethod
    def to_device(self, read: Tensor) -> Tensor:
        """The embeddings `[b, D]` on the device, given what was read."""

    def hold(self, chunks: Collection[Chunk]) -> None:  # noqa: B027 (most sources have nothing to do)
        """Have some chunks of the cache at hand, and no others; where there is a pooling, before they are read from."""

    def close(self) -> None:  # noqa: B027
        """Let go of threads and memory."""


class OnDevice(EmbeddingSource):
    """All embeddings on the device."""

    def __init__(self, image_emb: Tensor) -> None:
        """Hold `[V, N, D]`."""
        self.num_views, self._num_rows = image_emb.shape[:2]
        self._image_emb = image_emb.flatten(0, 1)

    def read(self, rows: Rows, views: Rows | None = None) -> Tensor:
        """Where the embeddings stand, in memory that the device can fetch from."""
        read = torch.from_numpy(rows if views is None else views * self._num_rows + rows)
        return read.pin_memory() if self._image_emb.is_cuda else read

    def to_device(self, read: Tensor) -> Tensor:
        """Index on the device."""
        return self._image_emb[read.to(self._image_emb.device, non_blocking=True)]

    def subset(self, rows: Rows) -> Tensor:
        """The plain view of distinct, ascending rows for the whole run; no copy where that is all of them."""
        return self._image_emb[: len(rows)] if len(rows) == self._num_rows else self.to_device(self.read(rows))


class OnHost(EmbeddingSource):
    """Embeddings that any row of can be read at once, as from mapped chunk files."""

    def __init__(self, take: Sequence[Callable[[Rows], NDArray[np.float16]]], device: torch.device) -> None:
        """Read a view with its own of V functions, which gives `[len(rows), D]`."""
        self.num_views = len(take)
        self._take, self._device = take, device

    def read(self, rows: Rows, views: Rows | None = None) -> Tensor:
        """The embeddings, in memory that the device can fetch from."""
        read = torch.from_numpy(self._gather(rows, views))
        return read.pin_memory() if self._device.type == "cuda" else read

    def _gather(self, rows: Rows, views: Rows | None) -> NDArray[np.float16]:
        if views is None or self.num_views == 1:
            return self._take[0](rows)
        order = np.argsort(views, kind="stable")
        edges = np.searchsorted(views[order], np.arange(1, self.num_views))
        parts = [take(rows[part]) for take, part in zip(self._take, np.split(order, edges), strict=True)]
        taken = np.empty((len(rows), parts[0].shape[1]), np.float16)
        taken[order] = np.concatenate(parts)
        return taken

    def to_device(self, read: Tensor) -> Tensor:
        """Move without waiting."""
        return read.to(self._device, non_blocking=True)


class Buffered(OnHost):
    """Embeddings of which whole chunks are read, as from an object store; those that were asked for are held."""

    def __init__(
        self,
        read_chunk: Callable[[Chunk], NDArray[np.float16]],
        dim: int,
        pooling: ChunkShuffle,
        device: torch.device,
        num_views: int = 1,
    ) -> None:
        """Read chunk by chunk.

        Args:
            read_chunk: gives the rows `[R, D]` of a chunk.
            dim: D.
            pooling: sizes of chunks and pools.
            device: where the embeddings are needed.
            num_views: V.
        """
        super().__init__((), device)
        self.pooling, self.num_views = pooling, num_views
        self._chunk_rows, self._read_chunk, self._dim = pooling.chunk_rows, read_chunk, dim
        self._chunks: dict[Chunk, Future[NDArray[np.float16]]] = {}
        self._threads = ThreadPoolExecutor(READ_THREADS, "chunks")

    def hold(self, chunks: Collection[Chunk]) -> None:
        """Begin to read what is not here, and let go of all else."""
        for chunk in self._chunks.keys() - set(chunks):
            self._chunks.pop(chunk).cancel()
        for chunk in chunks:
            if chunk not in self._chunks:
                self._chunks[chunk] = self._threads.submit(self._read_chunk, chunk)

    def close(self) -> None:
        """Let the threads go; what has not begun to be read is not read."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _gather(self, rows: Rows, views: Rows | None) -> NDArray[np.float16]:
        taken = np.empty((len(rows), self._dim), np.float16)
        chunks, within = np.divmod(rows, self._chunk_rows)
        needed = np.stack([np.zeros_like(rows) if views is None else views, chunks])
        for view, chunk in np.unique(needed, axis=1).T.tolist():
            here = (needed == [[view], [chunk]]).all(0)
            taken[here] = self._chunks[view, chunk].result()[within[here]]
        return taken
