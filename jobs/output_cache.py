"""The cache at a command's output, which may not exist yet."""

from typing import Any

from ..cache.format import CacheInfo
from ..cache.location import Location
from ..cache.read.cache import Cache
from ..cache.write.plan import open_planned
from ..cache.write.views import num_chunks_done


class OutputCache:
    """The cache at a command's output: opened once and handed on, since at a URL each opening is a request.

    Attributes:
        location: of the output.
        cache: open for writing, as it was when last read; None where nothing is planned yet.
    """

    def __init__(self, location: Location) -> None:
        """Look for the cache.

        Raises:
            CacheError: something else is there, or the store refuses.
        """
        self.location = location
        self.cache: Cache | None = None
        self.refresh()

    @property
    def info(self) -> CacheInfo | None:
        """The metadata of the cache, if it is planned."""
        return self.cache.info if self.cache else None

    def pass_settings(self) -> dict[str, Any]:
        """The settings of `clipglot cache` that another pass over the cache must have; empty without a cache."""
        if self.cache is None:
            return {}
        info = self.cache.info
        return {
            "model": info.encoder.model,
            "pretrained": info.encoder.pretrained,
            "precision": info.encoder.precision,
            "batch_size": info.batch_size,
            "max_pixels": info.max_pixels,
            "decoding": info.decoding,
        }

    def num_chunks_done(self) -> int:
        """Chunks that are stored by now, in all views that are begun; 0 without a cache, or while rows are planned."""
        return num_chunks_done(self.cache) if self.cache else 0

    def refresh(self) -> Cache | None:
        """Look again: another process may have planned or changed the cache.

        Raises:
            CacheError: as on creation.
        """
        self.cache = open_planned(self.location)
        return self.cache

    def require(self) -> Cache:
        """The cache, which is planned by now."""
        assert self.cache is not None, f"{self.location} is not planned"
        return self.cache
