"""Damage to a cache: errors name the chunk and the remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.read.cache import Cache
from clipglot.cache.storage import ragged
from clipglot.cli.main import main
from support.damage import flip_a_byte
from support.metadata_edits import edit, edit_attributes

READERS: dict[str, Callable[[Cache], Any]] = {
    "images/emb/c/0/1/0": Cache.image_emb,
    "images/norm/c/0/1": Cache.norm,
    "images/status/c/1": Cache.status,
    "images/key/bytes/c/0": Cache.keys,
    "images/key/offsets/c/0": Cache.keys,
    "captions/text/bytes/c/0": Cache.captions,
    "captions/text/offsets/c/0": Cache.captions,
    "captions/image/c/0": Cache.caption_image,
}
chunks = pytest.mark.parametrize("chunk", READERS)


@pytest.fixture
def copied(tiny_cache: Path, tmp_path: Path) -> Path:
    """Copy of a sealed cache, for tests that damage it."""
    return Path(shutil.copytree(tiny_cache, tmp_path / "cache.zarr"))


def verified(cache: Path) -> tuple[int, list[str]]:
    result = CliRunner().invoke(main, ["verify", str(cache), "--json"])
    return result.exit_code, json.loads(result.stdout)["faults"]


def test_an_intact_cache_has_no_faults(tiny_cache: Path) -> None:
    assert verified(tiny_cache) == (0, [])


@chunks
@pytest.mark.parametrize(
    "damage",
    [flip_a_byte, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(path.read_bytes()[:-5])],
    ids=["flipped", "emptied", "cut"],
)
def test_reading_and_verify_name_a_damaged_chunk(chunk: str, damage: Callable[[Path], None], copied: Path) -> None:
    damage(copied / chunk)
    with pytest.raises(CacheError, match=rf"damaged chunk {chunk} .*: delete "):
        READERS[chunk](Cache(copied))
    exit_code, (fault,) = verified(copied)
    assert exit_code == 1
    assert fault.startswith(f"{chunk}: damaged")


@chunks
def test_reading_and_verify_name_a_deleted_chunk_of_a_sealed_cache(chunk: str, copied: Path) -> None:
    (copied / chunk).unlink()
    with pytest.raises(CacheError, match=rf"{chunk} is absent: delete "):
        READERS[chunk](Cache(copied))
    exit_code, (fault,) = verified(copied)
    assert exit_code == 1
    assert fault.startswith(f"{chunk}: absent: delete ")


def test_the_remedy_for_a_damaged_embedding_chunk_repairs_the_cache(
    copied: Path, tiny_cache: Path, manifest: Path, make_cache: Callable[..., Any]
) -> None:
    flip_a_byte(copied / "images/emb/c/0/1/0")
    (fault,) = verified(copied)[1]
    assert "delete images/status/c/1 and run its `clipglot cache` command again" in fault
    (copied / "images/status/c/1").unlink()
    assert make_cache(manifest, copied).report.num_pictures == Cache(copied).info.chunk_rows
    assert np.array_equal(Cache(copied).image_emb(), Cache(tiny_cache).image_emb())
    assert verified(copied) == (0, [])


@pytest.mark.parametrize("array", ["images/emb", "images/key/offsets", "captions/image"])
@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("[]"), flip_a_byte],
    ids=["deleted", "cut", "list", "flipped"],
)
def test_verify_names_a_damaged_zarr_json_of_an_array(array: str, damage: Callable[[Path], None], copied: Path) -> None:
    damage(copied / array / "zarr.json")
    exit_code, faults = verified(copied)
    assert exit_code == 1
    assert all(array in fault for fault in faults)


@pytest.mark.parametrize("array", ["images/emb", "images/status", "captions/text/offsets"])
def test_verify_names_array_metadata_of_another_shape(array: str, copied: Path) -> None:
    description = json.loads((copied / array / "zarr.json").read_text())
    description["shape"][-1 if array != "images/emb" else 1] -= 1
    (copied / array / "zarr.json").write_text(json.dumps(description))
    exit_code, (fault,) = verified(copied)
    assert exit_code == 1
    assert f": {array}/zarr.json: shape" in fault


@pytest.mark.parametrize("array", ["images/emb", "images/status", "images/key/bytes", "captions/text/offsets"])
def test_verify_names_a_shape_with_too_many_chunks_to_list(array: str, copied: Path) -> None:
    description = json.loads((copied / array / "zarr.json").read_text())
    description["shape"][0] = 10**15
    (copied / array / "zarr.json").write_text(json.dumps(description))
    exit_code, (fault,) = verified(copied)
    assert exit_code == 1
    assert f": {array}/zarr.json: shape (1000000000000000," in fault


@pytest.mark.parametrize(
    "change",
    [
        lambda attributes: attributes.clear(),
        lambda attributes: attributes.update(clipglot=None),
        lambda attributes: attributes["clipglot"].clear(),
        lambda attributes: attributes["clipglot"].pop("encoder"),
        lambda attributes: attributes["clipglot"].pop("state"),
        lambda attributes: attributes["clipglot"].update(encoder="ViT-B-32"),
        lambda attributes: attributes["clipglot"]["encoder"].pop("weights_sha256"),
        lambda attributes: attributes["clipglot"].update(chunk_rows=0),
        lambda attributes: attributes["clipglot"].update(num_pictures="many"),
        lambda attributes: attributes["clipglot"].update(state="perfect"),
        lambda attributes: attributes["clipglot"].update(unknown=1),
    ],
)
def test_incomplete_or_invalid_metadata_raise_one_clear_error(
    change: Callable[[dict[str, Any]], object], copied: Path
) -> None:
    edit_attributes(copied, change)
    with pytest.raises(CacheError, match=r"cache\.zarr (has|is a Zarr group but)"):
        Cache(copied)


def test_an_unknown_format_version_is_named_with_a_remedy(copied: Path) -> None:
    edit(copied, format_version=99)
    with pytest.raises(CacheError, match=r"format 99, this clipglot reads format 1: install"):
        Cache(copied)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\udcff"])
def test_a_folder_with_a_damaged_zarr_json_raises_one_clear_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text(content, errors="surrogateescape")
    with pytest.raises(CacheError, match=r"is no cache, or its zarr\.json is damaged"):
        Cache(tmp_path)


def test_a_path_without_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="no such cache: make one with"):
        Cache(tmp_path / "absent.zarr")
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="file is a file, expected a cache"):
        Cache(tmp_path / "file")
    (tmp_path / "run").mkdir()
    with pytest.raises(CacheError, match=r"run has no zarr\.json, expected a cache: pass one; if"):
        Cache(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text("{}")
    with pytest.raises(CacheError, match="run holds a run, expected a cache"):
        Cache(tmp_path / "run")


def test_verify_names_the_chunk_of_a_flipped_byte_among_many(
    manifest: Path, make_cache: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ragged, "CHUNK_BYTES", 64)
    make_cache(manifest, tmp_path / "c.zarr")
    flip_a_byte(tmp_path / "c.zarr/captions/text/bytes/c/7")
    (fault,) = verified(tmp_path / "c.zarr")[1]
    assert fault.startswith("captions/text/bytes/c/7: damaged")
