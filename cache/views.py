"""Further views of a cache: which are to be made, and room for them beside those that it has.

A cache stays sealed, with the views that it has, while more are added: they count once all are there. R pictures of a
chunk, V views.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import CacheError
from .format import EMB, NORM, STATUS, Status
from .ragged import UNREADABLE_CHUNK, open_array
from .remedy import remedy
from .store import Cache

Missing = dict[int, tuple[int, ...]]
"""For chunks of pictures, ascending, the views that no pass has finished."""


def missing_views(cache: Cache, num_views: int) -> Missing:
    """What is left to be made, for so many views.

    Status is written when a chunk has all views of its pass, and the norm of a view after its embeddings.
    """
    done = _stored_numbers(cache.path / STATUS / "c")
    further = [_stored_numbers(cache.path / NORM / "c" / str(view)) for view in range(1, num_views)]
    missing: Missing = {}
    for chunk in range(cache.num_chunks):
        views = tuple(v for v, chunks in enumerate(further, 1) if chunk not in chunks)
        if chunk not in done:
            missing[chunk] = tuple(range(num_views))
        elif views:
            missing[chunk] = views
    return missing


def make_room(cache: Cache, num_views: int) -> None:
    """Let the arrays of a cache that is open for writing hold so many views, or more; no chunk is touched."""
    for name in (EMB, NORM):
        array = open_array(cache.root, name)
        if array.shape[0] < num_views:
            array.resize((num_views, *array.shape[1:]))


def num_begun(cache: Cache) -> int:
    """Views that the cache has, and those that a pass has begun to add."""
    return max(cache.info.num_views, int(open_array(cache.root, NORM).shape[0]))


def has_further_views(cache: Cache) -> bool:
    """Whether anything of a view beyond the plain one is stored, finished or not."""
    return any((cache.path / NORM / "c").glob("[1-9]*/*"))


def known_status(cache: Cache, chunk: int) -> NDArray[np.uint8]:
    """What an earlier pass found out about a chunk's pictures, `[R]`.

    Raises:
        CacheError: it is damaged.
    """
    try:
        return np.asarray(open_array(cache.root, STATUS)[cache.chunk_slice(chunk)])
    except UNREADABLE_CHUNK as error:
        what = remedy([(STATUS, (chunk,))])
        raise CacheError(f"{cache.path}: damaged chunk {STATUS}/c/{chunk} ({error}): {what}") from error


def count_repeats(cache: Cache) -> int:
    """Further views that repeat the plain one, because the picture could not be read again or gave no finite output."""
    embedded = cache.status() == Status.EMBEDDED
    views = range(1, cache.info.num_views)
    return sum(int(np.count_nonzero(embedded & (cache.norm(view) == 0))) for view in views)


def _stored_numbers(folder: Path) -> set[int]:
    return {int(file.name) for file in folder.iterdir() if file.name.isdigit()} if folder.is_dir() else set()
