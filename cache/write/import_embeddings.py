"""Import of embeddings computed elsewhere: a planned cache is filled chunk by chunk, as a pass does; it resumes alike.

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
from .chunk_writer import write_plain_view
from .report import PassReport
from .seal import seal


def scan_rows(
    source: EmbeddingFileSource, sample: NDArray[np.int64], on_progress: Callable[[int], None] = lambda done: None
) -> tuple[NDArray[np.int64], list[str]]:
    """Read all rows of a source once, before anything is written.

    Args:
        source: whose rows.
        sample: rows whose keys are returned, ascending.
        on_progress: called with the number of rows read.

    Returns:
        `[N]`, the first row of each image, in the order of a plan; and the keys of the sample.

    Raises:
        CacheError: the number of rows differs from what the files say, or there are none.
    """
    digests, keys, start = [], [], 0
    for batch in source.batches():
        digests.append(digests_of(batch.keys))
        inside = sample[(sample >= start) & (sample < start + len(batch))] - start
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
    """Write the missing chunks, then seal the cache.

    Args:
        cache: planned from the source, open for writing.
        source: of the embeddings.
        rows: `[N]`, the source's row of each image, ascending.
        on_progress: called after each chunk with the images done.

    Raises:
        CacheError: the source cannot be read, has not one finite row, or the disk is full.
    """
    started, num_images, num_embedded = time.perf_counter(), 0, 0

    def report() -> PassReport:
        wall_s = time.perf_counter() - started
        return PassReport(num_pictures=num_images, num_embedded=num_embedded, wall_s=wall_s)

    assert len(rows) == len(cache), "the plan was made from the same rows"
    missing = cache.missing_chunks()
    for chunk in missing:
        chunk_rows = cache.chunk_slice(chunk)
        raw = source.read(rows[chunk_rows])
        norm = np.linalg.norm(raw, axis=1)
        finite = (norm > 0) & (norm <= np.finfo(np.float32).max)  # False for NaN; the norm is stored as float32
        emb = np.where(finite[:, None], raw, 0) / np.where(finite, norm, 1)[:, None]
        status = np.where(finite, Status.EMBEDDED, Status.NOT_FINITE).astype(np.uint8)
        stored_norm = np.where(finite, norm, 0).astype(np.float32)
        write_plain_view(cache, chunk_rows, emb.astype(np.float16), stored_norm, status)
        num_images += len(finite)
        num_embedded += int(np.count_nonzero(finite))
        on_progress(num_images, report())
    if not (cache.status() == Status.EMBEDDED).any():
        raise CacheError(f"{source.info.path}: every row is NaN, infinite or zero: delete {cache.path}")
    if missing or cache.info.state != "sealed":
        seal(cache)
    return report()
