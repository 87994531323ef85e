"""Views of a cache: the plain one does not change, and more are added while the cache is in use."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Augmentation, Status
from clipglot.cache.progress import Progress
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.write.augment import augmented
from clipglot.cache.write.embed import embed_missing
from clipglot.cache.write.image_decode import ResizeCrop, decode
from clipglot.cache.write.image_reader import reader_of
from clipglot.cache.write.views import count_repeats, make_room, missing_views
from clipglot.cli.main import main
from clipglot.distill.errors import DistillError
from clipglot.encoders.image_tower import load_image_tower
from numpy.typing import NDArray
from PIL import Image
from support.cache_bytes import files
from support.drawings import draw_images
from support.metadata_edits import edit

VIEWS: dict[str, Any] = {"views": 3, "augment_scale": 0.4, "augment_flip": 0.5, "augment_seed": 7}


@pytest.fixture(scope="module")
def viewed(manifest: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed cache of `manifest` with three views, made in one pass. Read only."""
    cache = tmp_path_factory.mktemp("viewed") / "cache.zarr"
    make_cache(manifest, cache, **VIEWS)
    return cache


def test_the_plain_view_is_that_of_a_cache_without_views(viewed: Path, tiny_cache: Path) -> None:
    plain, with_views = files(tiny_cache), files(viewed)
    shared = {name for name in plain if not name.endswith("zarr.json") and not name.startswith("tokens/")}
    assert {name: with_views[name] for name in shared} == {name: plain[name] for name in shared}
    assert Cache(viewed).info.num_views == 3
    assert verify(Cache(viewed)) == []


def test_rows_of_a_view_equal_the_towers_own_output(viewed: Path, tiny_clip: Path, manifest: Path) -> None:
    tower, cache = load_image_tower(f"local-dir:{tiny_clip}", None), Cache(viewed)
    geometry, augmentation = ResizeCrop.from_preprocess(tower.preprocess), Augmentation(scale=0.4, flip=0.5, seed=7)
    assert cache.info.augmentation == augmentation
    keys = cache.keys()
    images = [Image.open(manifest.parent / key) for key in keys]
    for view in (1, 2):
        pixels = np.stack([np.asarray(augmented(p, geometry, augmentation, row, view)) for row, p in enumerate(images)])
        raw = tower.encode(pixels)
        assert np.allclose(cache.norm(view), np.linalg.norm(raw, axis=1), rtol=1e-5)
        expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        assert np.abs(cache.image_emb(view) - expected).max() < 1e-3
    assert np.abs(cache.image_emb(1) - cache.image_emb(0)).max() > 0.01
    with pytest.raises(IndexError, match="view 3 requested"):
        cache.image_emb(3)


def test_views_added_later_or_by_more_workers_have_the_same_bytes(
    viewed: Path, tiny_cache: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache.zarr"
    make_cache(manifest, cache)
    make_cache(manifest, cache, **VIEWS | {"views": 2})
    result = make_cache(manifest, cache, num_workers=2, **VIEWS)
    assert (result.resumed, result.report.num_pictures) == (True, 40)
    assert files(cache) == files(viewed)
    for again in (VIEWS, {}):  # asked for what is there, or for less
        assert make_cache(manifest, cache, **again).report.num_pictures == 0
    assert files(cache) == files(viewed)


def test_a_cache_is_usable_while_views_are_added(
    tiny_cache: Path, viewed: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    shutil.rmtree(cache / "tokens", ignore_errors=True)

    def stop(progress: Progress) -> None:
        if progress.stage == "embed" and progress.done >= 24:
            assert progress.total == 40
            raise KeyboardInterrupt

    from clipglot.jobs.cache import cache_images
    from clipglot.jobs.settings.cache import CacheSettings

    model = Cache(cache).info.encoder.model
    settings = CacheSettings(source=manifest, output=cache, model=model, batch_size=8, num_workers=1, **VIEWS)
    with pytest.raises(KeyboardInterrupt):
        cache_images(settings, stop)
    opened = Cache(cache).require_sealed()
    assert opened.info.num_views == 1
    assert verify(opened) == []
    assert np.array_equal(opened.image_emb(), Cache(tiny_cache).image_emb())
    assert np.array_equal(opened.mapped("images/emb").check().read(), Cache(tiny_cache).image_emb())
    left = missing_views(opened, 3)
    assert 0 < len(left) < 5
    assert set(left.values()) == {(1, 2)}
    assert "3 are begun" in CliRunner().invoke(main, ["inspect", str(cache)]).stdout
    (cache / "images/norm/c/1/0").unlink()
    assert missing_views(opened, 3)[0] == (1,)
    of_a_run, of_a_pass = cache / "tokens/.0.partial", cache / ".zarr.json.0.partial"
    of_a_run.parent.mkdir()
    for file in (of_a_run, of_a_pass):
        file.write_bytes(b"half")
    result = make_cache(manifest, cache, **VIEWS)
    assert result.report.num_pictures == 8 * (len(left) + 1)
    assert of_a_run.exists()  # it may be writing still
    shutil.rmtree(cache / "tokens")
    assert files(cache) == files(viewed)


def test_another_augmentation_or_fewer_views_than_planned_are_refused(
    viewed: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(DistillError, match=r"augmentation was 'scale 0.4, flip 0.5.*seed 7', now 'scale 0.3"):
        make_cache(manifest, viewed, **VIEWS | {"augment_scale": 0.3})
    cache = Path(shutil.copytree(viewed, tmp_path / "cache.zarr"))
    edit(cache, state="planned")
    (cache / "images/status/c/2").unlink()
    with pytest.raises(DistillError, match="views was 3, now 2"):
        make_cache(manifest, cache, **VIEWS | {"views": 2})
    make_cache(manifest, cache, **VIEWS)
    assert files(cache) == files(viewed)


@pytest.mark.parametrize("chunk", ["emb/c/2/1/0", "norm/c/1/3", "emb/c/0/2/0"])
def test_a_damaged_chunk_of_a_view_is_found_and_the_remedy_restores_it(
    chunk: str, viewed: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(viewed, tmp_path / "cache.zarr"))
    (cache / "images" / chunk).write_bytes(b"damaged")
    (fault,) = map(str, verify(Cache(cache)))
    assert f"images/{chunk}" in fault
    (cache / fault.partition(": delete ")[2].split()[0]).unlink()
    make_cache(manifest, cache)
    assert files(cache) == files(viewed)


def test_a_deleted_image_repeats_its_plain_view_and_a_restored_one_stays_out(
    make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    manifest, cache = draw_images(tmp_path, 16), tmp_path / "cache.zarr"
    hidden = (tmp_path / "images/0003.png").rename(tmp_path / "hidden.png")
    make_cache(manifest, cache)
    hidden.rename(tmp_path / "images/0003.png")
    (tmp_path / "images/0009.png").unlink()
    shutil.copy(tmp_path / "images/0001.png", tmp_path / "images/0011.png")  # another image than was captioned
    model = ["--model", Cache(cache).info.encoder.model, "--batch-size", "8", "--num-workers", "1"]
    options = [*model, "--views", "3", "--augment-scale", "0.4"]
    said = CliRunner().invoke(main, ["cache", str(manifest), "-o", str(cache), *options])
    assert "16 images in 3 views" in said.stdout
    assert "4 augmented views repeat the plain one" in said.stdout
    assert "next: " not in said.stdout  # it was complete before
    options[options.index("3")] = "2"
    again = CliRunner().invoke(main, ["cache", str(manifest), "-o", str(cache), *options])
    assert "is complete already: 15 images embedded in 3 views\n" in again.stdout
    opened = Cache(cache)
    assert opened.status()[[3, 9, 11]].tolist() == [Status.MISSING, Status.EMBEDDED, Status.EMBEDDED]
    for view in (1, 2):
        emb, norm = opened.image_emb(view), opened.norm(view)
        assert not emb[3].any()
        assert np.array_equal(emb[[9, 11]], opened.image_emb()[[9, 11]])
        assert np.flatnonzero(norm == 0).tolist() == [3, 9, 11]
    assert count_repeats(opened) == 4
    assert "4 repeat the plain one" in CliRunner().invoke(main, ["inspect", str(cache)]).stdout
    assert verify(opened) == []


def test_features_without_a_direction_cost_the_view_and_not_the_row(
    tiny_cache: Path, manifest: Path, tmp_path: Path
) -> None:
    """At once or later: the tower fails on the second row of each batch, except in the plain view."""
    geometry = ResizeCrop.from_preprocess(Cache(tiny_cache).info.encoder.preprocess)
    keys = Cache(tiny_cache).keys()
    plain = {decode(manifest.parent / key, geometry).tobytes() for key in keys}

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        features = pixels[:, :16, 0, 0].astype(np.float32) + 1
        features[1, 3] = 5 if pixels[1].tobytes() in plain else np.nan
        return features

    made = []
    for steps in ((3,), (1, 3)):
        cache = Path(shutil.copytree(tiny_cache, tmp_path / f"{len(steps)}.zarr"))
        shutil.rmtree(cache / "images/status/c")
        opened = Cache(cache, read_only=False)
        with pytest.raises(CacheError, match="no record of how its views are made"):
            embed_missing(opened, encode, reader=reader_of(opened), num_workers=1, num_views=3)
        opened.arrays.write_info(replace(opened.info, augmentation=Augmentation()))
        for num_views in steps:
            make_room(opened, num_views)
            embed_missing(opened, encode, reader=reader_of(opened), num_workers=1, num_views=num_views)
        assert opened.count_status() == {Status.EMBEDDED: 40}
        for view in (1, 2):
            assert np.flatnonzero(opened.norm(view) == 0).tolist() == [1, 9, 17, 25, 33]
            assert np.array_equal(opened.image_emb(view)[1::8], opened.image_emb()[1::8])
            assert not np.array_equal(opened.image_emb(view)[2::8], opened.image_emb()[2::8])
        made.append(files(cache))
    assert made[0] == made[1]


def test_a_wrong_image_root_adds_no_view(
    tiny_cache: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheError, match="not one image could be read again: check --image-root"):
        make_cache(manifest, cache, image_root=tmp_path / "empty", **VIEWS | {"augment_scale": 0.9})
    assert Cache(cache).require_sealed().info.num_views == 1
    assert make_cache(manifest, cache, **VIEWS).report.num_pictures == 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("--augment-flip 0.5", "pass --views 2 or more"),
        ("--views 2 --augment-scale 1", "--views 2 would all be the same"),
        ("--views 0", "--views 0: must be at least 1"),
        ("--views 2 --augment-scale 0", "--augment-scale 0.0: must be above 0"),
        ("--views 2 --augment-jitter 2", "--augment-jitter 2.0: must lie between 0 and 1"),
    ],
)
def test_impossible_views_are_bad_usage(changes: str, message: str) -> None:
    result = CliRunner().invoke(main, ["cache", "p.jsonl", "-o", "c.zarr", "--model", "m", *changes.split()])
    assert result.exit_code == 2
    assert message in result.stderr
