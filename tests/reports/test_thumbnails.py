"""Thumbnails from every kind of source: each shows the image of its row."""

import base64
import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.progress import ignore_progress
from clipglot.cache.read.cache import Cache
from clipglot.inference.thumbnails import MOST_BYTES
from clipglot.reports.figures import ShownImage
from clipglot.reports.thumbnails import SIDE, thumbnails
from PIL import Image
from support import source_makers as makers
from support.source_contract import SourceContract, write_images

COLOURS = [(220, 30, 30), (30, 200, 40), (40, 50, 220), (200, 200, 30), (30, 30, 30), (240, 240, 240)]
ONE_EACH = tuple((f"класс {i}",) for i in range(len(COLOURS)))


def plain_images() -> list[bytes]:
    """A PNG of each colour, taller than wide."""
    files = []
    for colour in COLOURS:
        Image.new("RGB", (60, 90), colour).save(file := BytesIO(), "PNG")
        files.append(file.getvalue())
    return files


def shown(cache: Cache) -> list[ShownImage]:
    return [ShownImage(row=row, key=key) for row, key in enumerate(cache.keys())]


def mean_colour(uri: str) -> tuple[float, ...]:
    image = Image.open(BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))
    assert (image.format, image.size) == ("WEBP", (SIDE, SIDE))
    return tuple(np.asarray(image.convert("RGB")).mean((0, 1)))


@pytest.mark.parametrize(
    "source",
    [
        makers.JsonLines,
        makers.Csv,
        makers.FolderOfTars,
        makers.OneTarWithTexts,
        makers.ParquetFolderOfASplit,
        makers.ParquetOfPaths,
        makers.Feather,
        makers.SavedDataset,
        makers.ClassFolders,
        makers.Coco,
        makers.Muge,
        makers.Sidecars,
    ],
    ids=lambda source: source.__name__,
)
def test_each_shows_the_image_of_its_row(
    source: type[SourceContract], make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    made = source().make(tmp_path / "source", plain_images(), ONE_EACH)
    cache: Cache = make_cache(made.path, tmp_path / "c.zarr", **made.options).cache
    images = shown(cache)
    found, problem = thumbnails(cache, images[::-1], None, ignore_progress)
    assert problem is None
    captions = cache.captions()
    for place, row in enumerate(cache.caption_image().tolist()):
        expected = COLOURS[int(captions[place].split()[-1])]
        assert mean_colour(found[row]) == pytest.approx(expected, abs=8)


def test_images_of_a_moved_source_and_of_one_that_lost_some(make_cache: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    made = makers.FolderOfTars().make(tmp_path / "source", plain_images(), ONE_EACH)
    cache: Cache = make_cache(made.path, tmp_path / "c.zarr").cache
    shutil.move(tmp_path / "source", tmp_path / "moved")
    found, problem = thumbnails(cache, shown(cache), None, ignore_progress)
    assert not found
    assert problem is not None
    assert "tars" in problem
    found, problem = thumbnails(cache, shown(cache), str(tmp_path / "moved" / "tars"), ignore_progress)
    assert (len(found), problem) == (len(COLOURS), None)


def test_an_appended_source_that_is_absent_costs_only_its_images(
    make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        names = write_images(tmp_path / name / f"of-{name}", plain_images())
        rows = [{"image": f"of-{name}/{each}", "text": [f"класс {i}"]} for i, each in enumerate(names)]
        (tmp_path / name / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_cache(tmp_path / "a" / "t.jsonl", tmp_path / "c.zarr")
    further = tmp_path / "b" / "t.jsonl"
    cache: Cache = make_cache(further, tmp_path / "c.zarr", append=True).cache
    assert len(cache) == 2 * len(COLOURS)
    shutil.rmtree(tmp_path / "b")
    found, problem = thumbnails(cache, shown(cache)[: len(COLOURS)], None, ignore_progress)
    assert (len(found), problem) == (len(COLOURS), None)
    found, problem = thumbnails(cache, shown(cache), None, ignore_progress)
    assert len(found) == len(COLOURS)
    assert problem is not None


def test_odd_sizes_and_noise(make_cache: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (900, 20), (2000, 1500), (176, 176)]
    files = []
    for size in sizes:
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(file := BytesIO(), "PNG")
        files.append(file.getvalue())
    made = makers.JsonLines().make(tmp_path, files, ONE_EACH[:4])
    cache: Cache = make_cache(made.path, tmp_path / "c.zarr").cache
    found, problem = thumbnails(cache, shown(cache), None, ignore_progress)
    assert problem is None
    assert all(len(uri) < 4 / 3 * MOST_BYTES + 100 for uri in found.values())
