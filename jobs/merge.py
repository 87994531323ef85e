"""`clipglot merge`: concatenate caches of one image tower."""

from pathlib import PurePosixPath

from ..cache.progress import OnProgress, Progress, ignore_progress
from ..cache.read.cache import Cache
from ..cache.write.merge import concatenate_caches
from .settings.merge import MergeSettings


def merge_caches(settings: MergeSettings, on_progress: OnProgress = ignore_progress) -> Cache:
    """Write the rows of several sealed caches as one new cache.

    Args:
        settings: the caches and where the new one goes.
        on_progress: called with the chunks of stage `merge`.

    Returns:
        The new cache, sealed.

    Raises:
        CacheError: caches of different towers or settings, a key that two have, damage, or no room.
    """
    return concatenate_caches(
        [Cache(cache) for cache in settings.caches],
        settings.output,
        prefixes=[PurePosixPath(cache).stem for cache in settings.caches] if settings.prefix else None,
        on_progress=lambda done, total: on_progress(Progress("merge", done, total)),
    )
