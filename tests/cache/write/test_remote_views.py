"""Views of a cache at a URL: read, sampled by training, and ignored while they are still being added."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.location import to_location
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.write.views import count_repeats, has_further_views, make_room, missing_views, num_begun
from clipglot.cli.main import main
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from support.run_logs import logged
from support.runs import settings


@pytest.fixture(scope="module")
def viewed(manifest: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache of `manifest` with three views. Read only."""
    cache = tmp_path_factory.mktemp("viewed") / "cache.zarr"
    make_cache(manifest, cache, views=3)
    return cache


def upload(cache: Path, name: str) -> str:
    fsspec.filesystem("memory").put(str(cache), f"/views/{name}", recursive=True)
    return f"memory://views/{name}"


def test_views_at_a_url_equal_local_ones(viewed: Path) -> None:
    far, near = Cache(upload(viewed, "read.zarr")), Cache(viewed)
    for view in range(3):
        assert np.array_equal(far.image_emb(view), near.image_emb(view))
        assert np.array_equal(far.norm(view), near.norm(view))
        assert np.array_equal(far.emb_rows(np.array([39, 0]), view), near.image_emb(view)[[39, 0]])
    with pytest.raises(IndexError, match="view 3 requested"):
        far.image_emb(3)
    assert (missing_views(far, 3), has_further_views(far), count_repeats(far)) == ({}, True, 0)
    assert missing_views(far, 4) == missing_views(near, 4) == dict.fromkeys(range(near.num_chunks), (3,))
    assert verify(far) == []


def test_a_copy_made_while_views_are_added_is_complete_without_them(viewed: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(viewed, tmp_path / "cache.zarr"))
    make_room(Cache(cache, read_only=False), 4)
    shutil.copytree(cache / "images/emb/c/2/0", cache / "images/emb/c/3/0")
    url = upload(cache, "growing.zarr")
    assert verify(Cache(cache)) == verify(Cache(url)) == []
    assert np.array_equal(Cache(url).image_emb(2), Cache(viewed).image_emb(2))
    assert (Cache(url).info.num_views, num_begun(Cache(url))) == (3, 4)
    assert "4 are begun" in CliRunner().invoke(main, ["inspect", url]).stdout


@pytest.mark.parametrize("chunk", ["images/emb/c/2/1/0", "images/norm/c/1/3"])
def test_an_absent_chunk_of_a_view_is_named(chunk: str, viewed: Path) -> None:
    url, again = upload(viewed, f"absent-{chunk[7:10]}.zarr"), "upload it again from the cache that this is a copy of"
    fsspec.filesystem("memory").rm(f"{url.removeprefix('memory:/')}/{chunk}")
    (fault,) = map(str, verify(Cache(url)))
    assert fault.startswith(f"{chunk}: absent: {again}, or delete ")
    with pytest.raises(CacheError, match=f"{chunk} is absent: {again}"):
        (Cache.image_emb if "emb" in chunk else Cache.norm)(Cache(url), int(chunk.split("/")[3]))


@pytest.mark.parametrize("embeddings", ["device", "chunks"])
def test_training_samples_views_as_from_the_local_copy(embeddings: Any, viewed: Path, tmp_path: Path) -> None:
    chunk_gb = 2 * 8 * 16 / 1e9
    near = settings(viewed, tmp_path / "near", embeddings=embeddings, buffer_gb=6 * chunk_gb, batch_size=4)
    far = replace(near, cache=to_location(upload(viewed, f"{embeddings}.zarr")), output=tmp_path / "far")
    train(near)
    train(far)
    train(replace(far, views="1", output=tmp_path / "one"))
    assert logged(tmp_path / "far") == logged(tmp_path / "near") != logged(tmp_path / "one")
    expected = load_final(RunFolder(tmp_path / "near")).tower.state_dict()
    found = load_final(RunFolder(tmp_path / "far")).tower.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
