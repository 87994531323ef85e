"""`clipglot inspect`: sampled pairs, images without captions, and failures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.preview import sample_captioned_images
from clipglot.cache.storage import ragged
from clipglot.cli.render import shortened
from rich.cells import cell_len
from support.command_line import run
from support.drawings import draw_images


@pytest.fixture(scope="module")
def gaps(make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache of 20 images: 5 have no captions, the first and the last among them, and 4 are missing. Read only."""
    folder = tmp_path_factory.mktemp("gaps")
    manifest = draw_images(folder, 20)
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in (0, 5, 6, 13, 19):
        records[row]["text"] = []
    records[9]["text"] = ["первая\nстрока \x1b[31m" + "и далее " * 40, "вторая"]
    manifest.write_text("".join(json.dumps(record) + "\n" for record in records))
    for row in range(4):
        (folder / "images" / f"{row:04}.png").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged, "CHUNK_BYTES", 64)  # eight numbers
        make_cache(manifest, folder / "cache.zarr")
    return folder / "cache.zarr"


@pytest.mark.parametrize("num", [0, 1, 3, 20, 50])
def test_sampled_pairs_are_evenly_spaced_and_uncaptioned_images_are_counted(num: int, gaps: Path) -> None:
    cache = Cache(gaps)
    image_index, captions, keys = cache.caption_image().tolist(), cache.captions(), cache.keys()
    pairs, num_uncaptioned = sample_captioned_images(cache, num)
    assert cache.arrays.array("captions/image").cdata_shape[0] > 2
    assert num_uncaptioned == 5
    assert [pair.row for pair in pairs] == np.linspace(0, 19, min(num, 20)).astype(int).tolist()
    for pair in pairs:
        of_it = [caption for owner, caption in zip(image_index, captions, strict=True) if owner == pair.row]
        assert (pair.key, pair.caption, pair.num_captions) == (keys[pair.row], next(iter(of_it), None), len(of_it))


def test_inspect_prints_each_pair_on_one_line(gaps: Path) -> None:
    shown = run("inspect", gaps).stdout
    assert "captions          " in shown
    assert "without captions  5 images\n" in shown
    assert "pairs.jsonl (table, sha256 " in shown
    row, image, num, caption = next(line for line in shown.splitlines() if "0009.png" in line).split(maxsplit=3)
    assert (row, image, num) == ("9", "images/0009.png", "2")
    assert caption.startswith("первая строка [31mи далее и далее ")
    assert shown.splitlines()[-1].split() == ["3", "missing", "images/0003.png"]  # the missing images come last
    assert "first caption" not in run("inspect", gaps, "--pairs", 0).stdout
    found = json.loads(run("inspect", gaps, "--pairs", 2, "--json").stdout)
    assert found["num_uncaptioned"] == 5
    assert found["pairs"] == [
        {"row": row, "key": f"images/{row:04}.png", "caption": None, "num_captions": 0} for row in (0, 19)
    ]


def test_shortened_texts_fit_the_width_and_are_printable() -> None:
    for text in ("一只猫坐在沙发上", "кот на диване", "a\tb\x07c\r\nd " * 9, ""):
        for width in range(2, 30):
            for keep_end in (False, True):
                found = shortened(text, width, keep_end=keep_end)
                assert cell_len(found) <= width
                assert found.isprintable()
    assert shortened("кот  на\n диване", 20) == "кот на диване"
    assert shortened("一只猫坐在沙发上", 8) == "一只猫…"
    assert shortened("один/два/0001.png", 9, keep_end=True) == "…0001.png"


@pytest.mark.parametrize(
    ("given", "num"),
    [
        (["CACHE"], 4),
        (["CACHE", "--failures"], 4),
        (["--failures", "CACHE"], 4),
        (["CACHE", "--failures", "-1"], 4),
        (["CACHE", "--failures", "--json"], 4),
        (["CACHE", "--failures", 2], 2),
        (["--failures", "2", "CACHE"], 2),
        (["CACHE", "--failures=3"], 3),
        (["CACHE", "--failures", 0], 0),
    ],
)
def test_failures_takes_an_optional_number(given: list[object], num: int, gaps: Path) -> None:
    result = run("inspect", *(gaps if word == "CACHE" else word for word in given), "--json")
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["failures"]) == num


def test_failures_beyond_the_limit_are_counted(gaps: Path) -> None:
    assert "… and 3 more: --failures lists all" in run("inspect", gaps, "--failures", 1, "--pairs", 0).stdout
    assert "'x' is not a valid integer" in run("inspect", gaps, "--failures=x").stderr
