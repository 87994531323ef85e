"""Text targets: embeddings of translated captions by the text teacher, the frozen text tower of the same CLIP.

A caption may have a translation into a language that the CLIP understands. Its embedding is a second target besides
that of the image, in the same space (Carlsson et al. 2022, "Cross-lingual and multilingual CLIP", section 3). M
captions, D features, R captions per chunk.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np
import zarr
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import TEACHER_EMB, TEACHER_STATUS, TEACHER_TEXT, CacheInfo, plan_chunk_rows
from ..read.cache import Cache
from ..sources.captions import SEPARATOR
from ..storage.encoding import create_array
from .shard import WHOLE, Shard

EncodeTexts = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to embeddings `[B, D] float32`, unit norm."""


class TextTargetStatus(IntEnum):
    """Status of a caption's translation. The codes are part of the format."""

    PENDING = 0
    EMBEDDED = 1
    NONE_GIVEN = 2
    NOT_FINITE = 3


def add_text_target_arrays(root: zarr.Group, info: CacheInfo, num_captions: int) -> None:
    """Create the empty arrays of text targets for a plan."""
    dim = info.encoder.dim
    rows = plan_chunk_rows(max(1, num_captions), dim, info.batch_size)
    create_array(root, TEACHER_EMB, (1, num_captions, dim), (1, rows, dim), "float16")
    create_array(root, TEACHER_STATUS, (num_captions,), (rows,), "uint8")


def missing_text_target_chunks(cache: Cache) -> list[int]:
    """Chunks of captions without text targets, ascending. Status is written last, so a chunk with a status is done."""
    done = cache.arrays.stored_chunks(f"{TEACHER_STATUS}/c")
    return [chunk for chunk in range(cache.arrays.array(TEACHER_STATUS).cdata_shape[0]) if chunk not in done]


def embed_text_targets(
    cache: Cache,
    encode: EncodeTexts,
    shard: Shard = WHOLE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Embed the translations of the missing chunks of a shard.

    Args:
        cache: planned with `--teacher-field`, open for writing.
        encode: the text teacher.
        shard: chunks to embed.
        on_progress: called with the number of captions done in this pass, and the total.

    Raises:
        CacheError: the text teacher has another output width than planned, or the disk is full.
    """
    missing = [chunk for chunk in missing_text_target_chunks(cache) if chunk in shard]
    done, total = 0, sum(len(captions_of(cache, chunk)) for chunk in missing)
    for chunk in missing:
        done += embed_text_target_chunk(cache, encode, chunk)
        on_progress(done, total)


def captions_of(cache: Cache, chunk: int) -> range:
    """The captions of a chunk of text targets."""
    status = cache.arrays.array(TEACHER_STATUS)
    return range(status.shape[0])[chunk * status.chunks[0] : (chunk + 1) * status.chunks[0]]


def embed_text_target_chunk(cache: Cache, encode: EncodeTexts, chunk: int) -> int:
    """Embed and write a chunk of translations; returns their number.

    Raises:
        CacheError: as `embed_text_targets`.
    """
    captions = captions_of(cache, chunk)
    texts = [text.decode() for text in cache.arrays.read_ragged(TEACHER_TEXT, captions.start, captions.stop).split()]
    emb, outcome = embed_texts(texts, encode, cache.info.batch_size, cache.info.encoder.dim)
    with zarr.config.set({"array.write_empty_chunks": True}):
        cache.arrays.reopen(TEACHER_EMB)[0, captions.start : captions.stop] = emb
        cache.arrays.reopen(TEACHER_STATUS)[captions.start : captions.stop] = outcome
    return len(texts)


def embed_texts(
    texts: Sequence[str], encode: EncodeTexts, batch_size: int, dim: int
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Embed texts; a text of several lines gets the mean direction of its lines.

    Args:
        texts: translations of R captions; empty if there is none.
        encode: the text teacher.
        batch_size: lines in one forward pass.
        dim: D.

    Returns:
        Embeddings `[R, D]`, of unit norm or zero, and the `TextTargetStatus` of each `[R]`.

    Raises:
        CacheError: the text teacher has another output width.
    """
    lines = [text.split(SEPARATOR) if text else [] for text in texts]
    owner = np.repeat(np.arange(len(texts)), [len(of_caption) for of_caption in lines])
    flat = [line for of_caption in lines for line in of_caption]
    sums = np.zeros((len(texts), dim))
    for start in range(0, len(flat), batch_size):
        batch = encode(flat[start : start + batch_size])
        if batch.shape[1:] != (dim,):
            raise CacheError(f"the teacher gave features of shape {batch.shape}, the cache was planned for {dim}")
        np.add.at(sums, owner[start : start + batch_size], batch)
    norm = np.linalg.norm(sums, axis=1)
    good = np.isfinite(norm) & (norm > 1e-6)
    status = np.where(good, TextTargetStatus.EMBEDDED, TextTargetStatus.NOT_FINITE)
    status[[not text for text in texts]] = TextTargetStatus.NONE_GIVEN
    emb = np.where(good[:, None], sums, 0) / np.where(good, norm, 1)[:, None]
    return emb.astype(np.float16), status.astype(np.uint8)
