"""`clipglot eval`: measure a merged CLIP."""

from ..cache.read.cache import Cache
from ..evals.retrieval import RetrievalReport, retrieve_from_cache
from ..inference.towers import load_towers
from .settings.evaluate import RetrievalSettings


def evaluate_retrieval(settings: RetrievalSettings) -> RetrievalReport:
    """Recall of a merged CLIP on the images and captions of a cache; no image is opened.

    Raises:
        CacheError: no cache, or one that is not complete.
        EncoderError: no merged CLIP, or one that does not load.
        EvalError: the cache was made by another image tower, or has no caption of an embedded image.
    """
    return retrieve_from_cache(load_towers(settings.merged), Cache(settings.cache))
