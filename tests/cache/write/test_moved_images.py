"""Moved images: for one worker, for one of several sources, or absent for a while."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.progress import Progress
from clipglot.cache.read.cache import Cache
from clipglot.distill.errors import DistillError
from clipglot.jobs.cache import cache_images
from clipglot.jobs.settings.cache import CacheSettings
from support.cache_bytes import cache_files
from support.drawings import draw_images
from support.worker_scripts import SLOW

Make = Callable[..., Any]


def two_sources(folder: Path, make_cache: Make) -> tuple[Path, Path, Path]:
    """A cache of eight images, a chunk of eight rows, and eight more; and the manifests of both."""
    manifests = []
    for name in ("first", "second"):
        drawn = draw_images(folder / name, 8)
        rows = [json.loads(line) for line in drawn.read_text().splitlines()]
        for row in rows:
            image = Path(row["image"])
            (drawn.parent / image).rename(drawn.parent / image.with_name(f"{name}{image.name}"))
            row["image"] = str(image.with_name(f"{name}{image.name}"))
        drawn.write_text("".join(json.dumps(row) + "\n" for row in rows))
        manifests.append(drawn.rename(drawn.with_name(f"{name}.jsonl")))
    first, second = manifests
    make_cache(first, folder / "c.zarr", chunk_rows=8)
    make_cache(second, folder / "c.zarr", append=True)
    return folder / "c.zarr", first, second


@pytest.mark.slow
def test_each_shard_reads_below_its_own_root(start_worker: Any, many_images: Path, alone: Path, tmp_path: Path) -> None:
    cache, there, here = tmp_path / "cache.zarr", tmp_path / "there", tmp_path / "here"
    for root in (there, here):
        shutil.copytree(many_images.parent, root)
    first = start_worker(cache, "0/2", SLOW.format(0.5), "--image-root", there)
    first.until((cache / "workers" / "0-of-2").exists)
    shutil.rmtree(there)
    there.mkdir()  # as a disk that is mounted on the other machine alone
    assert "shard 1/2 did" in start_worker(cache, "1/2", "", "--image-root", here).succeed()
    assert first.wait() in (0, 1)
    status = Cache(cache).status()
    assert (status[8:16] == Status.EMBEDDED).all()  # the chunk of shard 1


def test_a_source_whose_images_are_not_read_may_be_absent(make_cache: Make, tmp_path: Path) -> None:
    cache, first, second = two_sources(tmp_path, make_cache)
    whole = cache_files(cache)
    first.parent.rename(tmp_path / "gone")
    third = draw_images(tmp_path / "third", 8)
    make_cache(third, cache, append=True)
    assert Cache(cache).require_sealed().info.counts == {"embedded": 24}
    assert cache_files(cache)["images/emb/c/0/0/0"] == whole["images/emb/c/0/0/0"]
    (cache / "images/status/c/1").unlink()  # of the second source's
    make_cache(second, cache, append=True)
    assert Cache(cache).status().tolist() == [Status.EMBEDDED] * 24
    (cache / "images/status/c/0").unlink()
    with pytest.raises(CacheError, match=r"first: no such folder.*images of .*first\.jsonl: run its `clipglot cache`"):
        make_cache(second, cache, append=True)


def test_views_are_not_begun_while_a_source_is_absent(make_cache: Make, tmp_path: Path) -> None:
    cache, first, second = two_sources(tmp_path, make_cache)
    for manifest in (first, second):
        manifest.parent.rename(tmp_path / f"{manifest.stem}_moved")
    first, second = (tmp_path / f"{name}_moved" / f"{name}.jsonl" for name in ("first", "second"))
    before = cache_files(cache)
    with pytest.raises(CacheError, match=r"second\.jsonl: run its `clipglot cache` command with --append --image-root"):
        make_cache(first, cache, views=2)
    make_cache(second, cache, append=True)  # as that says
    make_cache(first, cache, views=2)
    assert Cache(cache).image_emb(1).any(axis=1).all()
    assert cache_files(cache)["images/emb/c/0/0/0"] == before["images/emb/c/0/0/0"]


def test_retried_images_give_the_bytes_of_an_undisturbed_pass(make_cache: Make, tmp_path: Path) -> None:
    manifest, cache = draw_images(tmp_path / "pictures", 24), tmp_path / "c.zarr"
    make_cache(manifest, tmp_path / "whole.zarr", chunk_rows=8)
    away = [tmp_path / "pictures" / "images" / f"{i:04}.png" for i in (9, 11)]
    for image in away:
        image.rename(image.with_suffix(".away"))
    make_cache(manifest, cache, chunk_rows=8)
    away[0].with_suffix(".away").rename(away[0])
    assert make_cache(manifest, cache).report.num_pictures == 0
    assert make_cache(manifest, cache, retry=True).report.num_pictures == 8  # one chunk
    assert [failure.row for failure in Cache(cache).failures()] == [11]
    away[1].with_suffix(".away").rename(away[1])
    make_cache(manifest, cache, retry=True)
    assert cache_files(cache) == cache_files(tmp_path / "whole.zarr")
    assert make_cache(manifest, cache, retry=True).report.num_pictures == 0


def test_a_stopped_retry_resumes_by_the_same_command_and_keeps_the_views(make_cache: Make, tmp_path: Path) -> None:
    manifest, cache = draw_images(tmp_path / "pictures", 16), tmp_path / "c.zarr"
    make_cache(manifest, tmp_path / "whole.zarr", chunk_rows=8, views=2)
    images = [tmp_path / "pictures" / "images" / f"{i:04}.png" for i in (3, 11)]
    for image in images:
        image.rename(image.with_suffix(".away"))
    make_cache(manifest, cache, chunk_rows=8, views=2)
    for image in images:
        image.with_suffix(".away").rename(image)

    def stop(progress: Progress) -> None:
        if progress.stage == "embed" and progress.done:
            raise KeyboardInterrupt

    settings = CacheSettings(
        source=manifest, output=cache, model=Cache(cache).info.encoder.model, batch_size=8, retry=True
    )
    with pytest.raises(KeyboardInterrupt):
        cache_images(settings, stop)
    assert Cache(cache).info.state == "planned"
    cache_images(settings)
    assert cache_files(cache) == cache_files(tmp_path / "whole.zarr")


def test_nothing_is_retried_while_a_source_is_absent(make_cache: Make, tmp_path: Path) -> None:
    cache, first, second = two_sources(tmp_path, make_cache)
    (cache / "images/status/c/1").unlink()
    next((second.parent / "images").iterdir()).write_bytes(b"broken")
    make_cache(second, cache, append=True)
    second.parent.rename(tmp_path / "gone")
    before = cache_files(cache)
    with pytest.raises(CacheError, match=r"images of .*second\.jsonl: run its `clipglot cache` command with --append"):
        make_cache(first, cache, retry=True)
    assert cache_files(cache) == before


@pytest.mark.parametrize("more", [{"shard": "0/2"}, {"append": True}])
def test_a_retry_is_for_a_lone_pass(more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="--retry"):
        CacheSettings(source=tmp_path, output=tmp_path, model="m", retry=True, **more)
