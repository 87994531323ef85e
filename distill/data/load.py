"""What training and validation run on: where embeddings are read, captions as ids, and who belongs to whom.

N images, M captions, D features.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.format import EMB, Status
from ...cache.progress import OnProgress, Progress, ignore_progress
from ...cache.read.cache import Cache
from ...cache.storage.mmap import MmapRows
from ...encoders.tokenizer import TextTokenizer
from ..device import free_bytes
from ..errors import DistillError
from ..train_settings import TrainSettings
from .batch_sampler import group_equal_captions
from .image_embeddings import READ_THREADS, Buffered, EmbeddingSource, OnDevice, OnHost
from .pairs import TrainData, ValidationData
from .shuffle import Chunk, ChunkShuffle
from .text_targets import open_teacher
from .tokens import TokenTable, open_tokens

NUM_POOLS = 3  # in the buffer: a batch may lie in two while the next is read
SHARE_OF_MEMORY = 0.5  # of what is free on the device that embeddings may take by themselves


def load_data(
    cache: Cache,
    images: EmbeddingSource,
    tokenizer: TextTokenizer,
    settings: TrainSettings,
    beside: Path,
    on_progress: OnProgress = ignore_progress,
) -> TrainData:
    """Bring a cache's captions into token ids, and find out which of them can be used.

    Args:
        cache: sealed.
        images: its embeddings.
        tokenizer: of the run.
        settings: of the run.
        beside: folder for the ids of this cache, used if it cannot be written.
        on_progress: called while captions are tokenized.

    Raises:
        CacheError: the cache is damaged.
        DistillError: it has no caption of an embedded image.
    """
    caption_image = _usable(cache, cache.status() == Status.EMBEDDED)
    tokens = _open_tokens(cache, tokenizer, settings, beside, on_progress)
    return TrainData(
        images=images,
        tokens=tokens,
        caption_image=caption_image,
        caption_group=group_equal_captions(tokens),
        teacher=open_teacher(cache, SHARE_OF_MEMORY * free_bytes(torch.device("cpu")))
        if settings.teacher_weight
        else None,
    )


def load_validation(
    cache: Cache,
    tokenizer: TextTokenizer,
    settings: TrainSettings,
    beside: Path,
    on_progress: OnProgress = ignore_progress,
) -> ValidationData:
    """Bring a held-out cache into memory.

    Raises:
        CacheError, DistillError: as `load_data`.
    """
    embedded = cache.status() == Status.EMBEDDED
    caption_image = _usable(cache, embedded)
    captions = np.flatnonzero(caption_image >= 0)
    place = np.cumsum(embedded) - 1
    tokens = _open_tokens(cache, tokenizer, settings, beside, on_progress)
    return ValidationData(
        image_emb=cache.image_emb()[embedded].astype(np.float32),
        tokens=tokens,
        captions=captions,
        image_index=place[caption_image[captions]],
        groups=group_equal_captions(tokens)[captions],
    )


def open_images(
    cache: Cache,
    settings: TrainSettings,
    device: torch.device,
    on_progress: OnProgress = ignore_progress,
) -> EmbeddingSource:
    """Where to read embeddings, of the views of `--views`: `--embeddings`, or the nearest place that holds them.

    Every chunk is checked against its checksum before it is trusted: here, or when its turn comes.

    Raises:
        CacheError: a chunk is absent or damaged, or a cache is to be mapped that is no local folder.
        DistillError: it has fewer views, or is no local folder and does not fit where `auto` would hold it.
    """
    info, where, pooling, num_views = (
        cache.info,
        settings.embeddings,
        pooling_of(cache, settings),
        views_of(cache, settings),
    )
    if where == "auto":
        needed = 2 * num_views * len(cache) * info.encoder.dim
        fits = needed <= SHARE_OF_MEMORY * free_bytes(device)
        where = "device" if fits else "mapped"
        if not fits and not cache.arrays.is_folder:  # another order is another run, so it is not chosen in silence
            raise DistillError(
                f"{cache.path}: its embeddings would take more than half of what is free on {device}: pass "
                "--embeddings chunks to read them in shuffled order, or device to hold them there all the same"
            )

    def read_chunk(chunk: Chunk) -> NDArray[np.float16]:
        view, number = chunk
        held = cache.chunk_slice(number)
        return cache.emb_rows(np.arange(held.start, held.stop), view)

    if pooling is not None:
        return Buffered(read_chunk, info.encoder.dim, pooling, device, num_views)
    if where == "device" and not cache.arrays.is_folder:
        return OnDevice(_read_to_device(cache, read_chunk, num_views, device, on_progress))
    views = _map_views(cache, num_views, on_progress)
    if where == "mapped":
        return OnHost([rows.take for rows in views], device)
    return OnDevice(_copy_to_device(views, info.chunk_rows, device))


def views_of(cache: Cache, settings: TrainSettings) -> int:
    """How many views of an image a run draws from.

    Raises:
        DistillError: the cache has fewer.
    """
    stored = cache.info.num_views
    if settings.views == "all":
        return stored
    if int(settings.views) > stored:
        raise DistillError(
            f"--views {settings.views}: {cache.path} has {stored}: run its `clipglot cache` command again with --views"
        )
    return int(settings.views)


def pooling_of(cache: Cache, settings: TrainSettings) -> ChunkShuffle | None:
    """How `--embeddings chunks` shuffles, within `--buffer-gb`; None where any row can be read.

    Raises:
        DistillError: not one chunk fits.
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


def _open_tokens(
    cache: Cache,
    tokenizer: TextTokenizer,
    settings: TrainSettings,
    beside: Path,
    on_progress: OnProgress,
) -> TokenTable:
    length, workers = settings.context_length, settings.workers
    return open_tokens(cache, tokenizer, length, beside, workers=workers, on_progress=on_progress)


def _map_views(cache: Cache, num_views: int, on_progress: OnProgress) -> list[MmapRows]:
    """The rows of some views, mapped and checked."""
    views = [cache.mapped(EMB, view) for view in range(num_views)]
    for view, rows in enumerate(views):
        before, total = view * cache.num_chunks, num_views * cache.num_chunks
        rows.check(lambda at, before=before, total=total: on_progress(Progress(at.stage, before + at.done, total)))  # type: ignore[misc]
    return views


def _copy_to_device(views: list[MmapRows], chunk_rows: int, device: torch.device) -> Tensor:
    """All rows of some views, `[V, N, D]`, by way of a chunk of host memory at a time."""
    image_emb = torch.empty((len(views), *views[0].shape), dtype=torch.float16, device=device)
    for held, rows in zip(image_emb, views, strict=True):
        for start in range(0, len(rows), chunk_rows):
            held[start : start + chunk_rows].copy_(torch.from_numpy(rows.read(start, start + chunk_rows)))
    return image_emb


def _read_to_device(
    cache: Cache,
    read_chunk: Callable[[Chunk], NDArray[np.float16]],
    num_views: int,
    device: torch.device,
    on_progress: OnProgress,
) -> Tensor:
    """All rows of some views, `[V, N, D]`, where none can be mapped; the host holds as many chunks as threads read."""
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


def _usable(cache: Cache, embedded: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The row of each caption's image, -1 where it was not embedded."""
    caption_image = cache.caption_image()
    usable = np.where(embedded[caption_image], caption_image, -1)
    if not (usable >= 0).any():
        raise DistillError(
            f"{cache.path} has no caption of an embedded image: cache again with the --text-field of the captions"
        )
    return usable
