"""Caches without images: the embedding of a translation replaces that of the image.

A text tower then learns from the text teacher alone (Carlsson et al. 2022, "Cross-lingual and multilingual CLIP",
section 3); the cache format, its batches and the losses stay the same.
"""

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ..errors import CacheError
from ..format import Status
from ..read.cache import Cache
from ..sources.captions import align
from ..sources.source import SourceRow
from .chunk_writer import write_plain_view
from .report import PassReport
from .seal import seal
from .text_targets import EncodeTexts, TextTargetStatus, embed_texts
from .work_sharing import ALONE, Worker, sharing


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
    worker: Worker = ALONE,
    on_progress: Callable[[int, PassReport], None] = lambda done, report: None,
) -> PassReport:
    """Embed the missing chunks of translations, then seal the cache; several workers share the chunks.

    Args:
        cache: planned from `rows_of_texts`, open for writing.
        encode: the text teacher.
        worker: this worker of the pass.
        on_progress: called with the number of texts embedded in this pass, after each chunk and about every second
            while waiting for other workers.

    Raises:
        CacheError: the text teacher has another output width than planned, or the disk is full.
    """
    started = time.perf_counter()
    num_texts, num_embedded, tower_s, others_s = 0, 0, 0.0, 0.0

    def report() -> PassReport:
        return PassReport(
            num_pictures=num_texts,
            num_embedded=num_embedded,
            wall_s=time.perf_counter() - started,
            tower_s=tower_s,
            others_s=others_s,
        )

    def wait_for_others(waited_s: float) -> None:
        nonlocal others_s
        others_s += waited_s
        on_progress(num_texts, report())

    missing = cache.missing_chunks()
    with sharing(cache.arrays.store, worker, "embed") as share:
        while share.has_more(lambda: dict.fromkeys(cache.missing_chunks()), wait_for_others):
            for chunk, _ in share.chunks(lambda: dict.fromkeys(cache.missing_chunks())):
                rows = cache.chunk_slice(chunk)
                texts, tower_from = cache.keys(rows.start, rows.stop), time.perf_counter()
                emb, outcome = embed_texts(texts, encode, cache.info.batch_size, cache.info.encoder.dim)
                tower_s += time.perf_counter() - tower_from
                embedded = outcome == TextTargetStatus.EMBEDDED
                status = np.where(embedded, Status.EMBEDDED, Status.NOT_FINITE).astype(np.uint8)
                write_plain_view(cache, rows, emb, embedded.astype(np.float32), status)
                num_texts += len(texts)
                num_embedded += int(np.count_nonzero(embedded))
                so_far = report()
                share.note(num_texts, so_far.wall_s, so_far.bottleneck)
                on_progress(num_texts, so_far)
    seal(cache, worker=worker, changed=bool(missing))
    return report()
