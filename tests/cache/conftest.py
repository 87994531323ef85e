"""Fixtures: a cache with token ids, and its HDF5 copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def with_tokens(tiny_cache: Path, make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `tiny_cache` that was trained on. Read only."""
    folder = tmp_path_factory.mktemp("zarr")
    shutil.copytree(tiny_cache, folder / "own.zarr", ignore=lambda *_: ["tokens"])
    make_run(folder / "own.zarr", folder / "run", epochs=1)
    return folder / "own.zarr"


@pytest.fixture(scope="session")
def h5(with_tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in one HDF5 file. Read only."""
    from clipglot.cache.read.cache import Cache
    from clipglot.cache.write.convert import convert

    path = tmp_path_factory.mktemp("h5") / "own.h5"
    convert(Cache(with_tokens), path)
    return path
