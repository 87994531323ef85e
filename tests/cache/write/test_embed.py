"""The pass, end to end with the tiny tower: rows, failed images, writing beside the tower, a full disk."""

import json
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.write import chunk_writer
from clipglot.cache.write.embed import embed_missing
from clipglot.cache.write.image_reader import reader_of
from clipglot.cache.write.report import PassReport
from clipglot.cli.main import main
from numpy.typing import NDArray
from PIL import Image
from support.cache_bytes import cache_files, delete_chunks
from support.drawings import draw_images


def test_rows_equal_the_towers_own_output(tiny_cache: Path, tiny_clip: Path, manifest: Path) -> None:
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tiny_clip}")
    clip.eval()
    cache = Cache(tiny_cache)
    keys = cache.keys()
    images = torch.stack([preprocess(Image.open(manifest.parent / key)) for key in keys])
    with torch.inference_mode():
        raw = clip.encode_image(images).numpy()
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(cache.image_emb() - expected).max() < 2**-11  # half a unit in the last place of float16 near 1
    assert np.allclose(cache.image_emb().astype(np.float32) * cache.norm()[:, None], raw, rtol=1e-3, atol=1e-3)
    assert np.allclose(cache.norm(), np.linalg.norm(raw, axis=1), rtol=1e-6)


def test_features_without_a_direction_cost_their_row(
    tiny_cache: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    """The first rows are NaN, infinite, zero and too long for float32; the fifth is very long, and valid."""
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    delete_chunks(cache, 1)

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        features = np.ones((len(pixels), 16), np.float32)
        features[0, 3], features[1, 5], features[2], features[3] = np.nan, -np.inf, 0, 3e38
        features[4] = 8e37
        return features

    embed_missing(Cache(cache, read_only=False), encode, reader=reader_of(Cache(cache)), num_workers=1)
    opened = Cache(cache)
    assert opened.status()[8:16].tolist() == [Status.NOT_FINITE] * 4 + [Status.EMBEDDED] * 4
    assert not opened.image_emb()[8:12].any()
    assert np.allclose(opened.image_emb()[12:16], 0.25)
    assert opened.norm()[8:13].tolist() == [0, 0, 0, 0, np.float32(32e37)]
    assert verify(opened) == []


def test_a_tower_of_another_width_is_refused(tiny_cache: Path, manifest: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    delete_chunks(cache, 2)
    with pytest.raises(CacheError, match=r"features of shape \(8, 5\), the cache was planned for \(8, 16\)"):
        embed_missing(
            Cache(cache, read_only=False),
            lambda pixels: np.ones((len(pixels), 5), np.float32),
            reader=reader_of(Cache(cache)),
            num_workers=1,
        )
    assert Cache(cache, read_only=False).missing_chunks() == [2]


def break_images(folder: Path) -> dict[str, str]:
    """Break images of `draw_images(folder, 24)`, all of the second chunk among them; returns name: status."""
    image = Image.open(folder / "images/0000.png").copy()
    broken = {f"images/{i:04}.png": "missing" for i in range(8, 16)}
    for key in broken:
        (folder / key).unlink()
    whole = (folder / "images/0001.png").read_bytes()
    (folder / "images/0001.png").write_bytes(whole[: len(whole) // 2])
    (folder / "images/0002.png").write_text("not a picture")
    (folder / "images/0003.png").write_bytes(b"")
    (folder / "images/0004.png").unlink()
    (folder / "images/0004.png").symlink_to("/etc/passwd")
    (folder / "images/0005.png").unlink()
    (folder / "images/0005.png").mkdir()
    Image.new("1", (20_000, 20_000)).save(folder / "images/0006.png")
    image.convert("CMYK").save(folder / "images/0016.png", "TIFF")
    image.save(folder / "images/0017.png", "GIF", save_all=True, append_images=[image.rotate(90)])
    image.quantize(16).save(folder / "images/0018.png", transparency=0)
    statuses = ["damaged", "not a picture", "not a picture", "outside root", "unreadable", "too large"]
    return broken | {f"images/{i:04}.png": status for i, status in enumerate(statuses, 1)}


def test_each_broken_image_costs_its_row_and_inspect_lists_its_reason(tiny_clip: Path, tmp_path: Path) -> None:
    manifest, cache = draw_images(tmp_path, 24), tmp_path / "cache.zarr"
    broken = break_images(tmp_path)
    options = ["--model", f"local-dir:{tiny_clip}", "--batch-size", "8", "--num-workers", "2"]
    made = CliRunner().invoke(main, ["cache", str(manifest), "-o", str(cache), *options])
    assert made.exit_code == 0, made.output
    assert "10 of 24 embedded" in made.stdout
    why = "8 missing, 2 not a picture, 1 damaged, 1 outside root, 1 too large, 1 unreadable"
    which = f"clipglot inspect {cache} --failures; try them again: --retry"
    next_ = f"next: clipglot train {cache} -o run"
    assert made.stdout.splitlines()[-2:] == [f"14 of 24 failed: {why}; list them: {which}", next_]
    again = CliRunner().invoke(main, ["cache", str(manifest), "-o", str(cache), *options])
    complete = f"{cache} is complete already: 10 images embedded"
    failed = f"14 of 24 failed: {why}; list them: {which}"
    assert [again.stdout.splitlines()[i] for i in (0, -1)] == [complete, failed]
    again = CliRunner().invoke(main, ["cache", str(manifest), "-o", str(cache), *options, "--json"])
    assert json.loads(again.stdout)["bottleneck"] is None
    shown = json.loads(CliRunner().invoke(main, ["inspect", str(cache), "--failures", "-1", "--json"]).stdout)
    assert {failure["key"]: failure["status"] for failure in shown["failures"]} == broken
    assert [failure["row"] for failure in shown["failures"]] == sorted(failure["row"] for failure in shown["failures"])
    assert shown["status"] == {
        "embedded": 10, "missing": 8, "outside root": 1, "unreadable": 1, "not a picture": 2, "damaged": 1,
        "too large": 1,
    }  # fmt: skip
    opened = Cache(cache)
    embedded = opened.status() == Status.EMBEDDED
    lengths = np.linalg.norm(opened.image_emb().astype(np.float32), axis=1)
    assert np.allclose(lengths[embedded], 1, atol=1e-3)
    assert not lengths[~embedded].any()
    assert (cache / "images/emb/c/0/1/0").exists()  # the chunk of eight missing images
    assert verify(opened) == []


def test_a_full_disk_is_one_clear_error_and_the_pass_resumes_later(
    tiny_cache: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # stands in for a disk: no larger file can be written
    try:
        with pytest.raises(CacheError, match=r"images/emb/c/0/0/0: cannot be written .*: free some space and run"):
            make_cache(manifest, tmp_path / "cache.zarr", chunk_rows=65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Cache(tmp_path / "cache.zarr").info.state == "planned"
    make_cache(manifest, tmp_path / "cache.zarr", chunk_rows=65_536)
    assert np.array_equal(Cache(tmp_path / "cache.zarr").image_emb(), Cache(tiny_cache).image_emb())


def test_one_chunk_is_written_while_the_next_is_embedded(
    tiny_cache: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    delete_chunks(cache, *range(5))
    embedded, write, ahead = threading.Semaphore(0), chunk_writer.write_chunk, []
    num_embedded = 0

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal num_embedded
        num_embedded += 1
        embedded.release()
        return np.ones((len(pixels), 16), np.float32)

    def slow_write(cache: Cache, chunk: Any) -> None:
        for _ in range(2 if chunk.index == 0 else chunk.index < 4):
            assert embedded.acquire(timeout=30)  # the tower computes meanwhile ...
        time.sleep(0.05)
        ahead.append(num_embedded - chunk.index - 1)  # ... but not without bound
        write(cache, chunk)

    monkeypatch.setattr(chunk_writer, "write_chunk", slow_write)
    report = embed_missing(Cache(cache, read_only=False), encode, reader=reader_of(Cache(cache)), num_workers=1)
    assert ahead == [1, 1, 1, 1, 0]
    assert report.write_wait_s > 0.05
    assert Cache(cache).missing_chunks() == []


def test_a_failed_write_stops_the_pass_after_one_more_chunk_at_the_latest(
    tiny_cache: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))
    delete_chunks(cache, *range(5))

    def fail(cache: Cache, chunk: Any) -> None:
        raise CacheError("disk full")

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        encoded.append(len(pixels))
        return np.ones((len(pixels), 16), np.float32)

    encoded: list[int] = []
    monkeypatch.setattr(chunk_writer, "write_chunk", fail)
    with pytest.raises(CacheError, match="disk full"):
        embed_missing(Cache(cache, read_only=False), encode, reader=reader_of(Cache(cache)), num_workers=1)
    assert len(encoded) <= 2
    assert Cache(cache).missing_chunks() == list(range(5))


@pytest.mark.parametrize(
    ("seconds", "stage"),
    [
        ({"wait_s": 3, "tower_s": 2, "write_s": 9, "write_wait_s": 1}, "decoding"),
        ({"wait_s": 1, "tower_s": 3, "write_s": 9, "write_wait_s": 2}, "the tower"),
        ({"wait_s": 1, "tower_s": 2, "write_s": 9, "write_wait_s": 3}, "writing"),
        ({"wait_s": 1, "tower_s": 2, "others_s": 3}, "other workers"),
    ],
)
def test_the_bottleneck_is_the_stage_that_the_pass_waited_for(seconds: dict[str, float], stage: str) -> None:
    assert PassReport(**seconds).bottleneck == stage


def test_without_memfd_pixels_go_through_a_nameless_file(
    tiny_cache: Path,
    manifest: Path,
    make_cache: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    make_cache(manifest, tmp_path / "cache.zarr")
    assert cache_files(tmp_path / "cache.zarr") == cache_files(tiny_cache)
    assert not [path for path in (tmp_path / "temporary").iterdir() if "clipglot" in path.name]
