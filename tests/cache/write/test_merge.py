"""Merge: the new cache holds the rows of all and trains; caches that differ are refused, with the setting's name."""

import errno
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import HASH, IMPORTED, CacheInfo, EncoderInfo, SourceInfo, Status
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.sources.reader import Locator
from clipglot.cache.sources.source import SourceRow, batched
from clipglot.cache.write.convert import convert
from clipglot.cache.write.image_reader import reader_of
from clipglot.cache.write.merge import concatenate_caches
from clipglot.cache.write.plan import plan_cache
from clipglot.jobs.bench_data import write_random_cache
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command_line import run
from support.drawings import draw_images
from support.metadata_edits import make_older
from support.source_contract import encoded_images
from support.tars import write_img2dataset


@pytest.fixture(scope="module")
def others(make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two caches of different images below one root; one image of each is broken. Read only."""
    folder = tmp_path_factory.mktemp("others")
    found = []
    for name, count in (("a", 40), ("b", 23)):
        manifest = draw_images(folder, count, seed=count)
        (folder / "images").rename(folder / name)
        manifest.write_text(manifest.read_text().replace('"images/', f'"{name}/'))
        (folder / name / "0007.png").write_bytes(b"broken")
        make_cache(manifest, folder / f"{name}.zarr", views=2)
        found.append(folder / f"{name}.zarr")
    return found[0], found[1]


def test_a_merged_cache_has_the_rows_of_all_in_order(others: tuple[Path, Path], tmp_path: Path) -> None:
    both = [Cache(path) for path in others]
    steps: list[tuple[int, int]] = []
    merged = concatenate_caches(both, tmp_path / "m.zarr", on_progress=lambda *step: steps.append(step))
    assert verify(merged) == []
    assert merged.keys() == [key for cache in both for key in cache.keys(0)]
    assert merged.captions() == [caption for cache in both for caption in cache.captions()]
    assert merged.caption_image().tolist() == [*both[0].caption_image(), *(both[1].caption_image() + 40)]
    for view in (0, 1):
        for read in (Cache.image_emb, Cache.norm):
            assert np.array_equal(read(merged, view), np.concatenate([read(cache, view) for cache in both]))
    assert np.array_equal(merged.status(), np.concatenate([cache.status() for cache in both]))
    assert merged.info.counts == {"embedded": 61, "not a picture": 2}
    assert np.array_equal(merged.arrays.read(HASH), np.concatenate([cache.arrays.read(HASH) for cache in both]))
    assert [(s.path, s.first_row) for s in merged.info.sources] == [
        (both[0].info.source.path, 0),
        (both[1].info.source.path, 40),
    ]
    assert steps == [(i + 1, len(steps)) for i in range(len(steps))]
    assert [path.name for path in tmp_path.iterdir()] == ["m.zarr"]

    shown = run("inspect", merged.path).stdout
    for said in (
        f"{both[0].info.source.path} (table, sha256",
        f"{both[1].info.source.path} (table, sha256",
        "from row 40",
    ):
        assert said in shown
    for name in ("image root", "image root 2", "text fields 2"):
        assert re.search(rf"^{name}  ", shown, re.MULTILINE)
    assert [source["first_row"] for source in json.loads(run("inspect", merged.path, "--json").stdout)["appended"]] == [
        40
    ]


def test_duplicates_are_counted_anew_where_all_have_hashes(others: tuple[Path, Path], tmp_path: Path) -> None:
    twin = Path(shutil.copytree(others[1], tmp_path / "twin.zarr"))
    merged = concatenate_caches([Cache(others[1]), Cache(twin)], tmp_path / "m.zarr", prefixes=["a", "b"])
    assert (Cache(others[1]).info.num_duplicates, merged.info.num_duplicates) == (0, 22)  # one image is broken
    assert verify(merged) == []
    shutil.rmtree(twin / HASH)
    make_older(twin)
    merged = concatenate_caches([Cache(others[1]), Cache(twin)], tmp_path / "n.zarr", prefixes=["a", "b"])
    assert (HASH in merged.arrays.root, merged.info.num_duplicates) == (False, None)


def test_a_merged_cache_trains_and_exports_and_merges_again(
    others: tuple[Path, Path], tiny_cache: Path, make_run: Callable[..., Path], make_cache: Any, tmp_path: Path
) -> None:
    result = run("merge", *others, "-o", tmp_path / "m.zarr")
    assert result.exit_code == 0, result.output
    assert "63 images and 124 captions of 2 caches" in result.stdout
    run_folder = make_run(tmp_path / "m.zarr", tmp_path / "run", epochs=1, val=others[1])
    assert export_run(ExportSettings(run=run_folder, output=tmp_path / "merged")).num_probes > 0
    make_cache(draw_images(tmp_path / "more", 9), tmp_path / "more.zarr", views=2)
    convert(Cache(tmp_path / "more.zarr"), tmp_path / "more.h5")
    result = run("merge", tmp_path / "m.zarr", tmp_path / "more.h5", "-o", tmp_path / "all.zarr", "--json")
    assert json.loads(result.stdout)["num_pictures"] == 72
    found = Cache(tmp_path / "all.zarr")
    assert [source.first_row for source in found.info.sources] == [0, 40, 63]
    assert verify(found) == []
    assert found.info.state == "sealed"


def test_text_targets_are_merged_with_their_captions(translated_caches: dict[str, Path], tmp_path: Path) -> None:
    both = [Cache(translated_caches[name]) for name in ("train", "mixed")]
    merged = concatenate_caches(both, tmp_path / "m.zarr", prefixes=["a", "b"])
    assert verify(merged) == []
    for read in (Cache.teacher_emb, Cache.teacher_status):
        assert np.array_equal(read(merged), np.concatenate([read(cache) for cache in both]))
    texts = [cache.arrays.read_ragged("teacher/text").split() for cache in (merged, *both)]
    assert texts[0] == texts[1] + texts[2]
    with pytest.raises(CacheError, match=r"cannot be one cache: teacher differs .*: True, .*: False"):
        concatenate_caches([both[0], Cache(translated_caches["val"])], tmp_path / "n.zarr")


def test_a_key_of_two_caches_is_refused_or_prefixed(others: tuple[Path, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(others[0], tmp_path / "copy.zarr")
    command = ["merge", others[1], others[0], copy, "-o", tmp_path / "m.zarr"]
    result = run(*command)
    assert result.exit_code == 1
    assert f"{others[0]} and {copy} both have a/0000.png (40 such): --prefix puts" in result.stderr
    assert run(*command, "--prefix").exit_code == 0
    keys = Cache(tmp_path / "m.zarr").keys()
    assert (keys[0], keys[23], keys[63], len(keys)) == ("b/b/0000.png", "a/a/0000.png", "copy/a/0000.png", 103)
    twin = shutil.copytree(others[0], tmp_path / "deep" / "copy.zarr")
    result = run("merge", copy, twin, "-o", tmp_path / "n.zarr", "--prefix")
    assert "both have copy/a/0000.png (40 such): rename one of the caches" in result.stderr
    assert not (tmp_path / "n.zarr").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tower", "weights_sha256 differs ("),
        ("precision", "a.zarr: 'fp32', "),
        ("imported", "b.zarr was computed in that, too, import it again with --precision fp32"),
        ("decoding", "b.zarr: 'scaled'): merge caches that were made with the same settings"),
        ("views", "num_views differs ("),
        ("augmentation", "b.zarr: 'scale 0.7, "),
        ("not sealed", "is not complete ("),
        ("exists", "exists: choose another name"),
        ("hdf5", "merge into a Zarr folder, then `clipglot convert` it"),
        ("damaged", "b.zarr: damaged chunk images/emb/c/1/0/0"),
        ("one", "CACHES: give two or more"),
    ],
)
def test_caches_that_differ_are_refused(
    change: str,
    message: str,
    others: tuple[Path, Path],
    tiny_cache: Path,
    other_clip: Path,
    make_cache: Any,
    tmp_path: Path,
) -> None:
    b, out = Path(shutil.copytree(others[1], tmp_path / "b.zarr")), tmp_path / "out.zarr"
    cache = Cache(b, read_only=False)
    encoder = cache.info.encoder
    match change:
        case "tower":
            cache.arrays.write_info(replace(cache.info, encoder=replace(encoder, weights_sha256="f" * 64)))
        case "precision":
            cache.arrays.write_info(replace(cache.info, encoder=replace(encoder, precision="bf16")))
        case "imported":
            source = replace(cache.info.source, kind=IMPORTED)
            cache.arrays.write_info(replace(cache.info, source=source, encoder=replace(encoder, precision="bf16")))
        case "decoding":
            cache.arrays.write_info(replace(cache.info, decoding="scaled"))
        case "views":
            b = tiny_cache
        case "augmentation":
            assert cache.info.augmentation
            cache.arrays.write_info(replace(cache.info, augmentation=replace(cache.info.augmentation, scale=0.7)))
        case "not sealed":
            cache.arrays.write_info(replace(cache.info, state="planned"))
            (b / "images" / "status" / "c" / "1").unlink()
        case "exists":
            out.mkdir()
        case "hdf5":
            out = tmp_path / "out.h5"
        case "damaged":
            content = bytearray((b / "images/emb/c/1/0/0").read_bytes())
            content[0] ^= 1
            (b / "images/emb/c/1/0/0").write_bytes(content)
    result = run("merge", others[0], *([] if change == "one" else [b]), "-o", out)
    assert result.exit_code == (2 if change == "one" else 1)
    assert message in result.stderr
    assert out.exists() == (change == "exists")
    assert {path.name for path in tmp_path.iterdir()} <= {"b.zarr", "out.zarr"}


def located(path: Path, name: str, rows: list[SourceRow], files: list[str], languages: bool) -> Cache:
    encoder = EncoderInfo(
        model="m", pretrained=None, weights_sha256="0", preprocess={}, dim=4, precision="fp32", quick_gelu=False
    )
    source = SourceInfo(path=name, sha256=name, image_root="/", image_field="", text_fields=[], kind="tar", limit=2)
    info = CacheInfo(state="planning", encoder=encoder, source=source, batch_size=2)
    plan_cache(path, batched(rows), info, files=lambda: files)
    cache = Cache(path, read_only=False)
    for array, value in (("images/emb", 1), ("images/norm", 1), ("images/status", Status.EMBEDDED)):
        cache.arrays.array(array)[...] = value
    cache.arrays.write_info(replace(cache.info, state="sealed", counts={"embedded": len(cache)}))
    return Cache(path)


def test_locators_files_and_languages_are_kept(tmp_path: Path) -> None:
    def rows(name: str, tags: list[str], file: int | None) -> list[SourceRow]:
        locators = [None if file is None else Locator(file, i, 9) for i in range(2)]
        return [SourceRow(i, f"{name}{i}", [name, f"{name}-"], (), tags, locators[i]) for i in range(2)]

    caches = [
        located(tmp_path / "a", "a", rows("a", [], None), [], False),
        located(tmp_path / "b", "b", rows("b", ["zh", "en"], 1), ["x.tar", "y.tar"], True),
        located(tmp_path / "c", "c", rows("c", ["en", "ru"], 0), ["z.tar"], True),
    ]
    merged = concatenate_caches(caches, tmp_path / "m")
    assert len(merged) == 6  # a limit of two was for each
    assert merged.files() == ["x.tar", "y.tar", "z.tar"]
    expected = [[-1, -1, -1]] * 2 + [[1, 0, 9], [1, 1, 9], [2, 0, 9], [2, 1, 9]]
    locators = merged.locators()
    assert locators is not None
    assert locators.tolist() == expected
    tags = [merged.info.languages[code] for code in merged.arrays.read("captions/language").tolist()]
    assert tags == [""] * 4 + ["zh", "en"] * 2 + ["en", "ru"] * 2
    assert merged.info.source.limit == 2
    convert(merged, tmp_path / "m.h5")
    found = Cache(tmp_path / "m.h5")
    assert (found.files(), found.locators().tolist()) == (merged.files(), expected)  # type: ignore[union-attr]


def test_images_in_tars_are_read_though_their_keys_have_a_prefix(tmp_path: Path, make_cache: Any) -> None:
    images = encoded_images(12)
    for name in ("a", "00000.tar"):  # a cache is perhaps called like its tar
        write_img2dataset(tmp_path / name, images, [f"{i}" for i in range(12)])
        make_cache(tmp_path / name, tmp_path / f"{name}.zarr", text_field=("caption",))
    both = [tmp_path / "a.zarr", tmp_path / "00000.tar.zarr"]
    assert run("merge", *both, "-o", tmp_path / "once.zarr", "--prefix").exit_code == 0
    assert run("merge", *both, tmp_path / "once.zarr", "-o", tmp_path / "m.zarr", "--prefix").exit_code == 0
    merged = Cache(tmp_path / "m.zarr")
    assert merged.keys(47, 48) == ["once/00000.tar/00002.tar/000020006"]
    read = reader_of(merged).read
    found = [next(read(row, merged.keys(row, row + 1), merged.locators(row, row + 1))) for row in range(48)]
    assert found == images * 4
    assert "48 images embedded again" in run("verify", merged.path, "--sample", 48, "--device", "cpu").stdout


def test_a_full_disk_is_one_clear_error_about_the_new_cache(
    others: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    result = run("merge", *others, "-o", tmp_path / "m.zarr")
    assert result.stderr.replace("\n", " ").strip() == (
        f"Error: {tmp_path / 'm.zarr'}: cannot be written (No space left on device): free some space and run the same "
        "command again"
    )
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_named(others: tuple[Path, Path]) -> None:
    with pytest.raises(CacheError, match=r"^/proc/none/m.zarr: cannot be written \(.*\): make it writable or choose"):
        concatenate_caches([Cache(path) for path in others], Path("/proc/none/m.zarr"))


@settings(max_examples=6, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=150), min_size=2, max_size=4))
def test_any_sizes_and_numbers_of_captions(tmp_path_factory: pytest.TempPathFactory, sizes: list[list[int]]) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    for n, counts in enumerate(sizes):
        write_random_cache(folder / str(n), ([f"{n} {i} {j}" for j in range(c)] for i, c in enumerate(counts)), 4)
    caches = [Cache(folder / str(n)) for n in range(len(sizes))]
    merged = concatenate_caches(caches, folder / "m", prefixes=[str(n) for n in range(len(sizes))])
    assert verify(merged) == []
    assert np.array_equal(merged.image_emb(), np.concatenate([cache.image_emb() for cache in caches]))
    by_row = Counter(merged.caption_image().tolist())
    assert [by_row[row] for row in range(len(merged))] == [count for counts in sizes for count in counts]
    assert merged.captions() == [f"{n} {i} {j}" for n, c in enumerate(sizes) for i, k in enumerate(c) for j in range(k)]
    shutil.rmtree(folder)
