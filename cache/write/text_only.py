"""Caches without images: each translation stands in the place of an image, its embedding in that of the image's.

A text tower then learns from the teacher alone, as in Carlsson et al. 2022, "Cross-lingual and multilingual CLIP",
section 3; the store, its batches and its losses stay as they are.
"""

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ..errors import CacheError
from ..format import Status
from ..read.cache import Cache
from ..sources.source import SourceRow, align
from .embed import write_chunk
from .report import PassReport
from .seal import seal
from .text_targets import Encode, TextTargetStatus, embed_texts
from .work_sharing import ALONE, Worker, sharing


def rows_of_texts(rows: Iterable[SourceRow]) -> Iterator[SourceRow]:
    """The rows of a manifest without images, each caption with its translation as the key.

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
    encode: Encode,
    worker: Worker = ALONE,
    on_progress: Callable[[int, PassReport], None] = lambda done, report: None,
) -> PassReport:
    """Embed the chunks of translations that are missing, then seal the cache; several workers share them.

    Args:
        cache: planned from `rows_of_texts`, open for writing.
        encode: the teacher.
        worker: which of those that share the pass this is.
        on_progress: called with the texts done in this pass: after each chunk, and about every second while it waits
            for other workers.

    Raises:
        CacheError: the teacher's output has another width than planned, or no room to write.
    """
    report, started = PassReport(), time.perf_counter()

    def wait_for_others(waited_s: float) -> None:
        report.others_s += waited_s
        report.wall_s = time.perf_counter() - started
        on_progress(report.num_pictures, report)

    missing = cache.missing_chunks()
    with sharing(cache.store, worker, "embed") as share:
        while share.has_more(lambda: dict.fromkeys(cache.missing_chunks()), wait_for_others):
            for chunk, _ in share.chunks(lambda: dict.fromkeys(cache.missing_chunks())):
                _embed_chunk(cache, encode, chunk, report)
                report.wall_s = time.perf_counter() - started
                share.note(report.num_pictures, report.wall_s, report.bottleneck)
                on_progress(report.num_pictures, report)
    seal(cache, worker=worker, changed=bool(missing))
    report.wall_s = time.perf_counter() - started
    return report


def _embed_chunk(cache: Cache, encode: Encode, chunk: int, report: PassReport) -> None:
    rows = cache.chunk_slice(chunk)
    tower_from = time.perf_counter()
    emb, found = embed_texts(cache.keys(rows.start, rows.stop), encode, cache.info.batch_size, cache.info.encoder.dim)
    report.tower_s += time.perf_counter() - tower_from
    good = found == TextTargetStatus.EMBEDDED
    status = np.where(good, Status.EMBEDDED, Status.NOT_FINITE).astype(np.uint8)
    write_chunk(cache, rows, emb[None], good[None].astype(np.float32), status)
    report.num_pictures += len(status)
    report.num_embedded += int(good.sum())
