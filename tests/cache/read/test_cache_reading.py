"""Reads of selected rows, and of images that are not embedded yet."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from clipglot.cache.format import Status
from clipglot.cache.read.cache import Cache
from clipglot.cli.main import main
from support.metadata_edits import edit


@pytest.mark.parametrize("rows", [[], [39], [3, 3, 38, 0, 8, 7, 38], list(range(40))])
def test_selected_rows_equal_the_same_rows_of_all(rows: list[int], tiny_cache: Path) -> None:
    cache, wanted = Cache(tiny_cache), np.array(rows, np.int64)
    some = cache.emb_rows(wanted)
    assert some.dtype == np.float16
    assert np.array_equal(some, cache.image_emb()[wanted])


def test_selected_rows_read_only_their_chunks(tiny_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    (cache / "images/emb/c/0/1/0").write_bytes(b"damaged")
    assert Cache(cache).emb_rows(np.array([39, 0, 7, 16])).any(axis=1).all()


@pytest.mark.parametrize("row", [-1, 40])
def test_rows_out_of_range_raise_an_index_error(row: int, tiny_cache: Path) -> None:
    with pytest.raises(IndexError, match=f"rows 0 to {row}|rows {row} to 0"):
        Cache(tiny_cache).emb_rows(np.array([0, row]))


def test_pending_images_do_not_count_as_failures(tiny_cache: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    edit(cache, state="planned")
    for chunk in (0, 3):
        (cache / f"images/status/c/{chunk}").unlink()
    assert Cache(cache).count_status() == {Status.PENDING: 16, Status.EMBEDDED: 24}
    assert list(Cache(cache).failures()) == []
    assert json.loads(CliRunner().invoke(main, ["inspect", str(cache), "--json"]).stdout)["failures"] == []
    shown = CliRunner().invoke(main, ["inspect", str(cache), "--pairs", "0"])
    assert "more: --failures" not in shown.output
    assert "images/0000.png" not in shown.output
