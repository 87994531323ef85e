"""Exact duplicates: embedded once a chunk, counted over the cache; neither they nor failed images take batch slots."""

import json
import shutil
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from clipglot.cache.format import Status
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.write import seal
from clipglot.cache.write.embed import embed_missing
from clipglot.cache.write.image_reader import reader_of
from clipglot.cli.main import main
from numpy.typing import NDArray
from PIL import Image
from support.cache_bytes import files
from support.drawings import draw_images
from support.metadata_edits import make_older

SETTINGS: dict[str, Any] = {"batch_size": 4, "chunk_rows": 12}
VIEWS: dict[str, Any] = {"views": 3, "augment_scale": 0.4}


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 24 images: 2, 5 and 9 have the same bytes, so have 3 and 20, and 7 and 8, which are broken."""
    manifest = draw_images(tmp_path_factory.mktemp("doubled"), 24)
    images = manifest.parent / "images"
    for copy, of in ((5, 2), (9, 2), (20, 3)):
        shutil.copy(images / f"{of:04}.png", images / f"{copy:04}.png")
    for broken in (7, 8):
        (images / f"{broken:04}.png").write_bytes(b"no image")
    return manifest


@pytest.fixture(scope="module")
def cache(doubled: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("caches") / "doubled.zarr"
    result = make_cache(doubled, path, **SETTINGS)
    assert (result.report.num_pictures, result.report.num_embedded, result.report.num_copied) == (24, 22, 2)
    return path


def test_equal_files_have_equal_rows_and_are_counted(cache: Path, doubled: Path) -> None:
    opened = Cache(cache)
    emb, norm = opened.image_emb(), opened.norm()
    for copy in (5, 9):
        assert np.array_equal(emb[copy], emb[2])
        assert norm[copy] == norm[2]
    assert np.allclose(emb[20], emb[3], atol=1e-3)  # another chunk, so another batch
    assert opened.info.num_duplicates == 3
    assert opened.status()[[7, 8]].tolist() == [Status.NOT_A_PICTURE] * 2
    assert not emb[[7, 8]].any()
    paths = [doubled.parent / key for key in Cache.keys(opened)]
    expected = [blake2b(path.read_bytes(), digest_size=16).digest() for path in paths]
    assert [row.tobytes() for chunk in range(2) for row in opened.hashes(chunk)] == expected
    assert verify(opened) == []
    assert "exact duplicates" in CliRunner().invoke(main, ["inspect", str(cache)]).stdout
    assert json.loads(CliRunner().invoke(main, ["inspect", str(cache), "--json"]).stdout)["num_duplicates"] == 3


@pytest.mark.parametrize("views", [{}, VIEWS])
def test_bytes_depend_neither_on_workers_nor_on_interruptions(
    views: dict[str, Any], doubled: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    make_cache(doubled, tmp_path / "at_once", **SETTINGS | views)
    made = make_cache(doubled, tmp_path / "again", **SETTINGS, num_workers=3)
    (tmp_path / "again/images/status/c/0").unlink()
    made = make_cache(doubled, tmp_path / "again", **SETTINGS | views)
    assert made.report.num_copied == 2
    assert files(tmp_path / "again") == files(tmp_path / "at_once")


def test_batches_hold_only_distinct_good_images(cache: Path, doubled: Path, tmp_path: Path) -> None:
    """The first chunk has 8, so two full batches; the second has 12."""
    cache = Path(shutil.copytree(cache, tmp_path / "cache.zarr"))
    shutil.rmtree(cache / "images/status/c")
    seen: list[int] = []

    def encode(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert pixels.shape == (4, 32, 32, 3)
        seen.append(int(pixels.any(axis=(1, 2, 3)).sum()))
        return pixels[:, 0, :16, 0].astype(np.float32) + 1

    embed_missing(Cache(cache, read_only=False), encode, reader=reader_of(Cache(cache)), num_workers=2)
    assert seen == [4, 4, 4, 4, 4]


class LateTower:
    """Computes a batch only when its features are collected, so that memory reused too early would show."""

    in_flight = 2
    transfer_s = 0.0
    forward_s = 0.0

    def __init__(self) -> None:
        self.outstanding = self.most_outstanding = 0

    def staging(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        return np.zeros(shape, np.uint8)

    def submit(self, pixels: NDArray[np.uint8], num: int) -> Callable[[], NDArray[np.float32]]:
        self.outstanding += 1
        self.most_outstanding = max(self.most_outstanding, self.outstanding)

        def wait() -> NDArray[np.float32]:
            self.outstanding -= 1
            return features_of(pixels)[:num]

        return wait


def features_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels[:, :16, :, 0].astype(np.float32).mean(2)


def test_a_tower_that_computes_later_gives_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    made = []
    tower = LateTower()
    for name, encode in (("late", tower), ("plain", features_of)):
        copy = Path(shutil.copytree(cache, tmp_path / name))
        shutil.rmtree(copy / "images/status/c")
        embed_missing(Cache(copy, read_only=False), encode, reader=reader_of(Cache(copy)), num_workers=1)
        made.append(files(copy))
    assert made[0] == made[1]
    assert (tower.outstanding, tower.most_outstanding) == (0, 3)


def test_a_cache_without_hashes_is_read_and_finished_without_them(
    cache: Path, doubled: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    old = Path(shutil.copytree(cache, tmp_path / "old.zarr"))
    shutil.rmtree(old / "images/hash")
    make_older(old, "num_duplicates")
    assert verify(Cache(old)) == []
    assert "exact duplicates" not in CliRunner().invoke(main, ["inspect", str(old)]).stdout
    (old / "images/status/c/1").unlink()
    make_cache(doubled, old, **SETTINGS)
    assert Cache(old).info.num_duplicates is None
    assert np.array_equal(Cache(old).image_emb(), Cache(cache).image_emb())
    assert not (old / "images/hash").exists()


def test_a_damaged_hash_is_found_and_the_remedy_restores_it(
    cache: Path, doubled: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(cache, tmp_path / "cache.zarr"))
    (damaged / "images/hash/c/1/0").write_bytes(b"damaged")
    (fault,) = map(str, verify(Cache(damaged)))
    assert "images/hash/c/1/0" in fault
    (damaged / fault.partition(": delete ")[2].split()[0]).unlink()
    make_cache(doubled, damaged, **SETTINGS)
    assert files(damaged) == files(cache)


@pytest.mark.parametrize("hashes_per_round", [1, 5, 23, 100])
def test_the_count_is_the_same_in_any_number_of_rounds(
    hashes_per_round: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal, "HASHES_PER_ROUND", hashes_per_round)
    assert seal.count_duplicates(Cache(cache)) == 3


def test_scaled_decoding_is_kept_and_gives_nearly_the_same_embeddings(
    make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    manifest = draw_images(tmp_path, 16)
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as image:
            image.resize((480, 400), Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)
    exact = make_cache(manifest, tmp_path / "exact.zarr").cache
    scaled = make_cache(manifest, tmp_path / "scaled.zarr", decoding="scaled").cache
    assert (exact.info.decoding, scaled.info.decoding) == ("exact", "scaled")
    cosine = (exact.image_emb().astype(np.float64) * scaled.image_emb()).sum(1)
    assert not np.array_equal(exact.image_emb(), scaled.image_emb())
    assert cosine.min() > 0.99
