"""The one way to open what searches a cache: its index file, or all of its embeddings."""

from pathlib import Path

from ..cache.read.cache import Cache
from .exact import ExactIndex
from .ivf import IvfIndex


def open_index(cache: Cache, file: Path | None = None, *, resident: bool = False) -> ExactIndex | IvfIndex:
    """Open a search over a cache.

    Args:
        cache: sealed.
        file: written by `clipglot index`; None searches exactly.
        resident: for many searches, see `ExactIndex`; an index file always is.

    Raises:
        SearchError: no index file, a damaged one, or that of another cache.
        CacheError: the cache is not complete, or damaged.
    """
    cache.require_sealed()
    return ExactIndex(cache, resident=resident) if file is None else IvfIndex(cache, file)
