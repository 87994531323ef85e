"""Filling a planned cache with embeddings that are there, chunk by chunk as a pass does: killed, it goes on.

N images, L rows of the source, D features.
"""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import CacheError
from ..format import Status
from ..read.cache import Cache
from ..sources.embeddings import EmbeddingFileSource
from ..storage.digests import digests_of, first_lines
from .embed import write_chunk
from .report import PassReport
from .seal import seal


def survey(
    source: EmbeddingFileSource, wanted: NDArray[np.int64], on_progress: Callable[[int], None] = lambda done: None
) -> tuple[NDArray[np.int64], list[str]]:
    """Read all rows of a source once, before anything is written.

    Args:
        source: whose rows.
        wanted: some of them, ascending.
        on_progress: called with the number of rows read.

    Returns:
        `[N]`, the first row of each image, in the order of a plan; and the keys of the wanted rows.

    Raises:
        CacheError: the rows are not as promised, or there are none.
    """
    digests, keys, start = [], [], 0
    for batch in source.batches():
        digests.append(digests_of(batch.keys))
        inside = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
        keys += [key.decode() for key in batch.keys.take(inside).split()]
        start += len(batch)
        on_progress(start)
    if not digests:
        raise CacheError(f"{source.info.path} holds no rows")
    first = first_lines(np.concatenate(digests))
    return np.flatnonzero(first == np.arange(len(first))), keys


def import_missing(
    cache: Cache,
    source: EmbeddingFileSource,
    rows: NDArray[np.int64],
    on_progress: Callable[[int, PassReport], None] = lambda done, report: None,
) -> PassReport:
    """Write the chunks that are missing, then seal the cache.

    Args:
        cache: planned from the source, open for writing.
        source: of the embeddings.
        rows: `[N]`, the source's row of each image, ascending.
        on_progress: called after each chunk with the images done.

    Raises:
        CacheError: the source cannot be read, has not one finite row, or there is no room to write.
    """
    report, started = PassReport(), time.perf_counter()
    assert len(rows) == len(cache), "the plan was made from the same rows"
    missing = cache.missing_chunks()
    for chunk in missing:
        held = cache.chunk_slice(chunk)
        raw = source.read(rows[held])
        norm = np.linalg.norm(raw, axis=1)
        good = (norm > 0) & (norm <= np.finfo(np.float32).max)  # False for NaN; the norm is stored as float32
        emb = np.where(good[:, None], raw, 0) / np.where(good, norm, 1)[:, None]
        status = np.where(good, Status.EMBEDDED, Status.NOT_FINITE).astype(np.uint8)
        stored = np.where(good, norm, 0).astype(np.float32)
        write_chunk(cache, held, emb.astype(np.float16)[None], stored[None], status)
        report.num_pictures += len(good)
        report.num_embedded += int(good.sum())
        report.wall_s = time.perf_counter() - started
        on_progress(report.num_pictures, report)
    if not (cache.status() == Status.EMBEDDED).any():
        raise CacheError(f"{source.info.path}: every row is NaN, infinite or zero: delete {cache.path}")
    if missing or cache.info.state != "sealed":
        seal(cache)
    report.wall_s = time.perf_counter() - started
    return report
