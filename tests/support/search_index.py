"""Index files of caches for tests, tuned by random queries."""

from pathlib import Path

import numpy as np
from clipglot.cache.read.cache import Cache
from clipglot.search.build import write_index_file

from support.nearest_rows import unit_queries


def write_index(cache: Cache, path: Path, kind: str | None = None) -> Path:
    """Write an index of a cache."""
    queries = unit_queries(np.random.default_rng(5), 200, cache.info.encoder.dim)
    write_index_file(cache, path, queries, kind_of_queries="texts", kind=kind)
    return path
