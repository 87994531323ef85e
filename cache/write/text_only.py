"""Caches without images: the embedding of a translation replaces that of the image.

A text tower then learns from the text teacher alone (Carlsson et al. 2022, "Cross-lingual and multilingual CLIP",
section 3); the cache format, its batches and the losses stay the same.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from ..errors import CacheError
from ..format import Status
from ..read.cache import Cache
from ..sources.captions import align
from ..sources.source import SourceRow
from .chunk_writer import write_plain_view
from .report import PassReport
from .seal import seal_if_whole
from .shard import WHOLE, Shard
from .text_targets import EncodeTexts, TextTargetStatus, embed_texts


def rows_of_texts(rows: Iterable[SourceRow]) -> Iterator[SourceRow]:
    """Rows of a manifest without images: one row per caption, with its translation as key.

    Raises:
        CacheError: a caption without translation.
    """
    for row in rows:
        for caption, translation in zip(row.captions, align(row.captions, row.translations), strict=True):
            if not translation and caption.strip():
                raise CacheError(f"line {row.line} of the manifest: {caption!r:.60} has no translation: drop the row")
            if translation:
                yield SourceRow(row.line, translation, [caption])


def embed_missing_texts(
    cache: Cache,
    encode: EncodeTexts,
    shard: Shard = WHOLE,
    on_progress: Callable[[int, PassReport], None] = lambda done, report: None,
) -> PassReport:
    """Embed the missing chunks of a shard, then seal the cache if no other chunk is missing.

    Args:
        cache: planned from `rows_of_texts`, open for writing.
        encode: the text teacher.
        shard: chunks to embed.
        on_progress: called with the number of texts embedded in this pass, after each chunk.

    Raises:
        CacheError: the text teacher has another output width than planned, or the disk is full.
    """
    started, report = time.perf_counter(), PassReport()
    missing = [chunk for chunk in cache.missing_chunks() if chunk in shard]
    for chunk in missing:
        report = replace(report + embed_text_chunk(cache, encode, chunk), wall_s=time.perf_counter() - started)
        on_progress(report.num_pictures, report)
    seal_if_whole(cache, 1, shard, changed=bool(missing))
    return replace(report, wall_s=time.perf_counter() - started)


def embed_text_chunk(cache: Cache, encode: EncodeTexts, chunk: int) -> PassReport:
    """Embed and write a chunk of translations.

    Raises:
        CacheError: as `embed_missing_texts`.
    """
    rows, started = cache.chunk_slice(chunk), time.perf_counter()
    texts = cache.keys(rows.start, rows.stop)
    emb, outcome = embed_texts(texts, encode, cache.info.batch_size, cache.info.encoder.dim)
    tower_s = time.perf_counter() - started
    embedded = outcome == TextTargetStatus.EMBEDDED
    status = np.where(embedded, Status.EMBEDDED, Status.NOT_FINITE).astype(np.uint8)
    write_plain_view(cache, rows, emb, embedded.astype(np.float32), status)
    return PassReport(
        num_pictures=len(texts),
        num_embedded=int(np.count_nonzero(embedded)),
        wall_s=time.perf_counter() - started,
        tower_s=tower_s,
    )
