"""Search and serve by an index file: the same images as without, and only for its own cache."""

import json
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.read.cache import Cache
from clipglot.jobs.index import build_index
from clipglot.jobs.serve import _indexes
from clipglot.jobs.settings.index import IndexSettings
from clipglot.search.errors import SearchError
from clipglot.search.ivf import IvfIndex
from support.command_line import run


@pytest.fixture(scope="module")
def index(merged: Path, tiny_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("index") / "tiny.index"
    build_index(IndexSettings(cache=tiny_cache, output=file, clip=merged))
    return file


def hits(*arguments: object) -> list[Any]:
    done = run("search", *map(str, arguments), "--json")
    assert done.exit_code == 0, done.output
    found: list[Any] = json.loads(done.stdout)
    return found


def test_search_by_an_index_finds_the_same_images(merged: Path, tiny_cache: Path, index: Path) -> None:
    query = (merged, tiny_cache, "red", "a blue circle", "--top", 5)
    assert hits(*query, "--index", index) == hits(*query)


def test_each_index_goes_to_its_cache(tiny_cache: Path, class_cache: Path, index: Path, manifest: Path) -> None:
    caches = [Cache(class_cache), Cache(tiny_cache)]
    found = _indexes(caches, [index])
    assert {number: type(each) for number, each in found.items()} == {1: IvfIndex}
    assert _indexes(caches, []) == {}
    with pytest.raises(SearchError, match="of another cache"):
        _indexes(caches[:1], [index])
    with pytest.raises(SearchError):
        _indexes(caches[1:], [index, index])
    with pytest.raises(SearchError, match=str(manifest)):
        _indexes(caches, [manifest])
