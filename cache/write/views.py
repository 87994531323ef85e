"""Further views of a cache: which are to be made, and room for them beside those that it has.

A cache stays sealed, with the views that it has, while more are added: they count once all are there. R images of a
chunk, V views.
"""

import numpy as np

from ..format import EMB, NORM, Status
from ..read.cache import Cache

Missing = dict[int, tuple[int, ...]]
"""For chunks of images, ascending, the views that no pass has finished."""


def missing_views(cache: Cache, num_views: int) -> Missing:
    """What is left to be made, for so many views.

    Status is written when a chunk has all views of its pass, and the norm of a view after its embeddings.
    """
    not_done = set(cache.missing_chunks())
    further = [cache.stored_numbers(f"{NORM}/c/{view}") for view in range(1, num_views)]
    missing: Missing = {}
    for chunk in range(cache.num_chunks):
        views = tuple(v for v, chunks in enumerate(further, 1) if chunk not in chunks)
        if chunk in not_done:
            missing[chunk] = tuple(range(num_views))
        elif views:
            missing[chunk] = views
    return missing


def make_room(cache: Cache, num_views: int) -> None:
    """Let the arrays of a cache that is open for writing hold so many views, or more; no chunk is touched."""
    for name in (EMB, NORM):
        array = cache.array(name)
        if array.shape[0] < num_views:
            array.resize((num_views, *array.shape[1:]))


def num_begun(cache: Cache) -> int:
    """Views that the cache has, and those that a pass has begun to add."""
    return max(cache.info.num_views, int(cache.array(NORM).shape[0]))


def has_further_views(cache: Cache) -> bool:
    """Whether anything of a view beyond the plain one is stored, finished or not."""
    return any(cache.stored_numbers(f"{NORM}/c/{view}") for view in range(1, num_begun(cache)))


def count_repeats(cache: Cache) -> int:
    """Further views that repeat the plain one, because the image could not be read again or gave no finite output."""
    embedded = cache.status() == Status.EMBEDDED
    views = range(1, cache.info.num_views)
    return sum(int(np.count_nonzero(embedded & (cache.norm(view) == 0))) for view in views)
