"""A wrong image root stops a pass early with the path that was tried; a right one has absent images tried again."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.progress import Progress
from clipglot.cache.sources.image_root import fitting_root
from clipglot.cache.write.report import PassReport
from clipglot.cli.main import main
from clipglot.jobs.cache import cache_images
from clipglot.jobs.settings.cache import CacheSettings
from support.source_contract import encoded_images, write_images

Make = Callable[..., Any]


def write_table(path: Path, names: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps({"image": name, "text": "a cat"}) for name in names))
    return path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask after 16 images, as a pass does after a thousand."""
    monkeypatch.setattr("clipglot.cache.write.embed.CHECKED_IMAGES", 16)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("below", ["work", "work/data", "work/data/images", "elsewhere"])
def test_a_wrong_root_stops_the_pass_and_the_right_one_is_named(
    below: str, tmp_path: Path, make_cache: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are relative to `work`, which is the working directory if the root is elsewhere."""
    names = write_images(tmp_path / "work" / "data" / "images", encoded_images(40))
    table = write_table(tmp_path / "tables" / "pairs.jsonl", [f"data/images/{name}" for name in names])
    wrong = tmp_path / (below if below != "work" else "work/data")
    wrong.mkdir(exist_ok=True)
    if below == "elsewhere":
        monkeypatch.chdir(tmp_path / "work")
    with pytest.raises(CacheError) as error:
        make_cache(table, tmp_path / "c.zarr", image_root=wrong, batch_size=8)
    assert f"{wrong}/data/images/{names[0]}" in str(error.value)
    assert f"--image-root {tmp_path}/work" in str(error.value)
    result = make_cache(table, tmp_path / "c.zarr", image_root=tmp_path / "work", batch_size=8)
    assert (result.cache.status() == Status.EMBEDDED).all()
    whole = make_cache(table, tmp_path / "whole.zarr", image_root=tmp_path / "work", batch_size=8).cache
    assert np.array_equal(result.cache.image_emb(), whole.image_emb())


@pytest.mark.usefixtures("few")
def test_a_gap_at_the_beginning_does_not_stop_the_pass(tmp_path: Path, make_cache: Make) -> None:
    names = write_images(tmp_path, encoded_images(40))
    table = write_table(tmp_path / "pairs.jsonl", [*(f"gone/{i}.png" for i in range(40)), *names])
    cache = make_cache(table, tmp_path / "c.zarr").cache
    assert cache.info.counts == {"embedded": 40, "missing": 40}


@pytest.mark.usefixtures("few")
def test_an_appended_source_below_a_wrong_root_stops_too(tmp_path: Path, make_cache: Make) -> None:
    images = encoded_images(80)
    first = write_table(tmp_path / "first" / "pairs.jsonl", write_images(tmp_path / "first", images[:40]))
    make_cache(first, tmp_path / "c.zarr", chunk_rows=8)
    names = [f"new/{name}" for name in write_images(tmp_path / "second" / "new", images[40:])]
    second = write_table(tmp_path / "tables" / "more.jsonl", names)
    with pytest.raises(CacheError, match="--image-root"):
        make_cache(second, tmp_path / "c.zarr", append=True)
    cache = make_cache(second, tmp_path / "c.zarr", append=True, image_root=tmp_path / "second").cache
    assert cache.info.counts == {"embedded": 80}


def test_few_absent_images_name_the_path_too(tmp_path: Path, make_cache: Make) -> None:
    names = write_images(tmp_path / "images", encoded_images(3))
    table = write_table(tmp_path / "tables" / "pairs.jsonl", names)
    wrong = re.escape(f"{tmp_path}/tables/{names[0]}")
    with pytest.raises(CacheError, match=rf"3 missing.*tried {wrong}.*--image-root"):
        make_cache(table, tmp_path / "c.zarr")


@pytest.mark.parametrize("is_sealed", [True, False])
def test_absent_images_are_tried_again_below_a_new_root(is_sealed: bool, tmp_path: Path, make_cache: Make) -> None:
    images = encoded_images(24)
    names = write_images(tmp_path / "new", images)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    for name in (names[3], names[20]):
        (tmp_path / "old" / name).unlink()
    (tmp_path / "new" / names[20]).unlink()
    table = write_table(tmp_path / "pairs.jsonl", names)
    cache = make_cache(table, tmp_path / "c.zarr", image_root=tmp_path / "old", chunk_rows=8).cache
    assert cache.info.counts == {"embedded": 22, "missing": 2}
    assert make_cache(table, tmp_path / "c.zarr", image_root=tmp_path / "old").report.num_pictures == 0
    if not is_sealed:
        (tmp_path / "c.zarr/images/status/c/1").unlink()
    again = make_cache(table, tmp_path / "c.zarr", image_root=tmp_path / "new")
    assert again.report.num_pictures == (8 if is_sealed else 16)  # the chunk of the image that came back
    assert again.cache.info.counts == {"embedded": 23, "missing": 1}
    whole = make_cache(table, tmp_path / "whole.zarr", image_root=tmp_path / "new", chunk_rows=8).cache
    assert np.array_equal(again.cache.image_emb(), whole.image_emb())
    shutil.rmtree(tmp_path / "old")
    (tmp_path / "old").mkdir()  # an empty root costs no embedding
    lost = make_cache(table, tmp_path / "c.zarr", image_root=tmp_path / "old")
    assert lost.report.num_pictures == 0
    assert lost.cache.info.counts == {"embedded": 23, "missing": 1}


def test_failures_are_counted_while_the_pass_goes_on_from_where_it_was(tmp_path: Path, tiny_clip: Path) -> None:
    names = write_images(tmp_path, encoded_images(32))
    (tmp_path / names[9]).unlink()
    (tmp_path / names[10]).write_bytes(encoded_images(1)[0][:500])
    (tmp_path / names[31]).unlink()
    table = write_table(tmp_path / "pairs.jsonl", names)
    settings = CacheSettings(
        source=table, output=tmp_path / "c.zarr", model=f"local-dir:{tiny_clip}", batch_size=8, num_workers=1
    )
    reports: list[PassReport] = []
    cache_images(settings, on_report=reports.append)
    assert [dict(report.failed) for report in reports] == [
        {},
        {"missing": 1, "damaged": 1},
        {"missing": 1, "damaged": 1},
        {"missing": 2, "damaged": 1},
    ]
    for chunk in (2, 3):
        (tmp_path / f"c.zarr/images/status/c/{chunk}").unlink()
    shown: list[Progress] = []
    cache_images(settings, shown.append)
    assert [step[1:] for step in shown if step.stage == "embed"] == [(16, 32), (24, 32), (32, 32)]


def test_what_is_kept_is_counted_in_embeddings(
    tmp_path: Path, make_cache: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = write_images(tmp_path, encoded_images(24))
    (tmp_path / names[0]).unlink()
    table = write_table(tmp_path / "pairs.jsonl", names)
    make_cache(table, tmp_path / "c.zarr")
    (tmp_path / "c.zarr/images/status/c/2").unlink()

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clipglot.jobs.cache.cache_images", stop)
    stopped = CliRunner().invoke(main, ["cache", str(table), "-o", str(tmp_path / "c.zarr")])
    assert "stopped: 15 of 24 images are embedded and kept" in stopped.stderr


def test_the_root_that_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "a" / "b" / "c", encoded_images(1))
    monkeypatch.chdir(tmp_path)
    for root, name, fits in [
        ("a/b", "b/c/0000.png", "a"),
        ("a/b/c", "b\\c\\0000.png", "a"),
        ("a/b", "0000.png", "a/b/c"),
        ("a/b/c", "a/b/c/0000.png", "."),
        ("a", f"{tmp_path}/a/b/c/0000.png", "a/b/c"),
    ]:
        assert fitting_root(tmp_path / root, [name]) == tmp_path / fits
    assert fitting_root(tmp_path / "a", ["x/0000.png"]) is None
