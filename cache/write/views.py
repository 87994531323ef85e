"""Augmented views of a cache: which are missing, and room for them beside the views it has.

A cache stays sealed, with the views that it has, while more are added: they count once all of them are finished.
"""

import numpy as np

from ..format import EMB, NORM, Status
from ..read.cache import Cache

MissingViews = dict[int, tuple[int, ...]]
"""For chunks of images, ascending, the views that no pass has finished."""


def missing_views(cache: Cache, num_views: int) -> MissingViews:
    """Find the views that are still to be made, out of `num_views`.

    Status is written when a chunk has all views of its pass, and the norm of a view after its embeddings.
    """
    missing_chunks = set(cache.missing_chunks())
    finished = [cache.arrays.stored_chunks(f"{NORM}/c/{view}") for view in range(1, num_views)]
    missing: MissingViews = {}
    for chunk in range(cache.num_chunks):
        views = tuple(view for view, chunks in enumerate(finished, 1) if chunk not in chunks)
        if chunk in missing_chunks:
            missing[chunk] = tuple(range(num_views))
        elif views:
            missing[chunk] = views
    return missing


def make_room(cache: Cache, num_views: int) -> None:
    """Resize the arrays of a cache that is open for writing to at least `num_views`; no chunk is touched."""
    for name in (EMB, NORM):
        array = cache.arrays.array(name)
        if array.shape[0] < num_views:
            array.resize((num_views, *array.shape[1:]))


def num_begun(cache: Cache) -> int:
    """Number of views that the cache has or that a pass has begun to add."""
    return max(cache.info.num_views, int(cache.arrays.array(NORM).shape[0]))


def num_chunks_done(cache: Cache) -> int:
    """Number of chunks that are stored in all views that are begun; 0 while rows are still planned."""
    if not cache.info.is_laid_out:
        return 0
    return cache.num_chunks - len(missing_views(cache, num_begun(cache)))


def has_further_views(cache: Cache) -> bool:
    """Whether any chunk of a view beyond the plain one is stored, of a finished view or not."""
    return any(cache.arrays.stored_chunks(f"{NORM}/c/{view}") for view in range(1, num_begun(cache)))


def count_repeats(cache: Cache) -> int:
    """Count further views that repeat the plain one, because the image was gone or the output not finite."""
    embedded = cache.status() == Status.EMBEDDED
    views = range(1, cache.info.num_views)
    return sum(int(np.count_nonzero(embedded & (cache.norm(view) == 0))) for view in views)
