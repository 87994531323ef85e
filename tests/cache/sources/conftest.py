"""Fixtures of sources: the cache of a plain table, which every other source is compared with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.read.cache import Cache
from support.source_contract import Captions, as_table, encoded_images


@pytest.fixture(scope="session")
def cache_of_table(
    make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Captions], Cache]:
    """`cache_of_table(captions)`: the cache of a table of images with these captions, made once. Read only."""
    paths: dict[str, Path] = {}

    def cache_of(captions: Captions) -> Cache:
        name = repr([list(texts) for texts in captions])
        if name not in paths:
            folder = tmp_path_factory.mktemp("table")
            make_cache(as_table(folder, encoded_images(len(captions)), captions), folder / "table.zarr")
            paths[name] = folder / "table.zarr"
        return Cache(paths[name])

    return cache_of
