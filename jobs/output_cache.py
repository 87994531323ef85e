"""The cache at a command's output, which may not exist yet."""

from typing import Any

import numpy as np

from ..cache.format import STATUS, CacheInfo, Status
from ..cache.location import Location
from ..cache.read.cache import Cache
from ..cache.write.plan import open_planned


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

    def num_embedded(self) -> int:
        """Images whose embeddings are stored by now; 0 without a cache, or while rows are planned."""
        if self.cache is None or not self.cache.info.is_laid_out:
            return 0
        stored = self.cache.arrays.stored_chunks(f"{STATUS}/c")
        return sum(int(np.count_nonzero(self.cache.status(chunk) == Status.EMBEDDED)) for chunk in stored)

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
