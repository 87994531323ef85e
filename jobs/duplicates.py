"""`clipglot duplicates`: near-duplicate images in a cache, or shared by two caches."""

from ..cache.progress import OnProgress, ignore_progress
from ..cache.read.cache import Cache
from ..distill.device import resolve_device
from ..evals.duplicates import DuplicatesReport, find_near_duplicates
from .settings.duplicates import DuplicatesSettings


def find_duplicates(settings: DuplicatesSettings, on_progress: OnProgress = ignore_progress) -> DuplicatesReport:
    """Find images with a near neighbour in their cache, or images of a second cache with one in the first.

    Args:
        settings: caches, threshold, sample and device.
        on_progress: called with the pairs of images of stage `compare`.

    Raises:
        CacheError: a cache is absent, not complete, or damaged.
        DistillError: no such device.
        EvalError: caches of two image towers, of texts, or without an embedded image.
    """
    return find_near_duplicates(
        Cache(settings.cache),
        Cache(settings.against) if settings.against else None,
        threshold=settings.threshold,
        sample=settings.sample,
        seed=settings.seed,
        num_listed=settings.pairs,
        device=resolve_device(settings.device),
        on_progress=on_progress,
    )
