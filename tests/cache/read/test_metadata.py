"""Lost or damaged `zarr.json` of a cache, a group or an array: errors name it and the remedy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import CHECKSUM
from clipglot.cache.metadata import checksum_of
from clipglot.cache.read.arrays import parent_groups
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.cache.write.merge import concatenate_caches
from support.cache_bytes import files
from support.command_line import run
from support.metadata_edits import edit, make_older
from support.s3_server import Bucket
from support.tars import write_shards

REMEDY = "delete the cache and run its `clipglot cache` command again"
GROUPS = ["captions", "captions/text", "images", "images/key", "source", "source/file"]
OPTIONAL = ["images/hash", "images/locator", "captions/language", "source/file/bytes"]
DAMAGES: dict[str, Callable[[Path], Any]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:30]),
}
damages = pytest.mark.parametrize("damage", DAMAGES)


@pytest.fixture(scope="module")
def located(manifest: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache with all optional arrays: from tars, with languages. Read only."""
    folder = tmp_path_factory.mktemp("located")
    images = [path.read_bytes() for path in sorted((manifest.parent / "images").iterdir())[:12]]
    write_shards(folder / "shards", images, [["ein Bild"]] * len(images))
    make_cache(folder / "shards", folder / "c.zarr", text_field=("caption",), language=("de",))
    return folder / "c.zarr"


@pytest.fixture
def own(located: Path, tmp_path: Path) -> Path:
    """Copy of `located`, for tests that damage it."""
    return Path(shutil.copytree(located, tmp_path / "own.zarr"))


@damages
@pytest.mark.parametrize("name", [*GROUPS, *OPTIONAL])
def test_verify_names_a_lost_zarr_json_and_copies_stop_at_it(
    name: str, damage: str, own: Path, located: Path, tmp_path: Path
) -> None:
    DAMAGES[damage](own / name / "zarr.json")
    result = run("verify", own, "--json")
    (fault,) = json.loads(result.stdout)["faults"]
    assert result.exit_code == 1
    assert fault.startswith(f"{own}: {name}/zarr.json is absent or damaged (")
    assert fault.endswith(f"): {REMEDY}")
    result = run("convert", own, tmp_path / "c.h5")
    assert (result.exit_code, fault in result.stderr, list(tmp_path.glob("*.h5"))) == (1, True, [])
    result = run("merge", located, own, "-o", tmp_path / "m.zarr", "--prefix")
    assert (result.exit_code, fault in result.stderr, list(tmp_path.glob("m*"))) == (1, True, [])


@pytest.mark.parametrize("name", ["images/hash", "captions/language", "source/file"])
def test_append_refuses_a_cache_with_a_lost_zarr_json(
    name: str, own: Path, located: Path, manifest: Path, make_cache: Callable[..., Any]
) -> None:
    (own / name / "zarr.json").unlink()
    before = files(own)
    with pytest.raises(CacheError, match=f"{name}/zarr.json is absent or damaged .*: delete the cache and run"):
        make_cache(manifest, own, append=True, text_field=("text",))
    assert files(own) == before
    shutil.copyfile(located / name / "zarr.json", own / name / "zarr.json")
    make_cache(manifest, own, append=True, text_field=("text",))
    assert verify(Cache(own)) == []


@damages
def test_reading_an_array_with_a_lost_zarr_json_names_it(damage: str, own: Path) -> None:
    for name in OPTIONAL:
        DAMAGES[damage](own / name / "zarr.json")
    cache = Cache(own)
    readers = {
        "images/hash": lambda: cache.hashes(0),
        "images/locator": cache.locators,
        "captions/language": cache.languages,
        "source/file/bytes": cache.files,
    }
    for name, read in readers.items():
        with pytest.raises(CacheError, match=rf"{name}/zarr\.json is absent or damaged .*: delete the"):
            read()
    for arguments in ([], ["--json"]):
        result = run("inspect", own, *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {own}: captions/language/zarr.json is absent or damaged (")


@damages
def test_verify_names_a_lost_zarr_json_in_an_object_store(damage: str, own: Path, bucket: Bucket) -> None:
    for number, name in enumerate(("images/hash", "captions")):
        copy = Path(shutil.copytree(own, own.with_name(f"{number}.zarr")))
        DAMAGES[damage](copy / name / "zarr.json")
        url = bucket.upload(copy, f"{damage}{number}.zarr")
        (fault,) = map(str, verify(Cache(url)))
        assert fault.startswith(f"{url}: {name}/zarr.json is absent or damaged (")
        assert fault.endswith(f"): upload it again from the cache that this is a copy of, or {REMEDY}")


def test_verify_checks_the_group_of_tokens(own: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    make_run(own, tmp_path / "run", epochs=1)
    (own / "tokens/zarr.json").write_bytes(b"{")
    (fault,) = map(str, verify(Cache(own)))
    assert fault.startswith(f"{own}: tokens/zarr.json is absent or damaged (")
    assert fault.endswith("): delete tokens: training writes it again")
    with pytest.raises(CacheError, match=r"tokens/zarr\.json is absent or damaged"):
        Cache(own).arrays.nodes()
    shutil.rmtree(own / "tokens")
    assert verify(Cache(own)) == []


def test_no_flipped_bit_changes_the_metadata_unnoticed(own: Path) -> None:
    content = (own / "zarr.json").read_bytes()
    info, num_found = Cache(own).info, 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 7
        (own / "zarr.json").write_bytes(flipped)
        try:
            assert Cache(own).info == info, flipped[place - 20 : place + 20]
        except CacheError:
            num_found += 1
    assert num_found > len(content) // 3  # much of the rest is indentation


def test_metadata_edited_by_hand_are_refused_with_a_remedy(own: Path, bucket: Bucket) -> None:
    text = (own / "zarr.json").read_text()
    expected = json.loads(text)["attributes"][CHECKSUM]
    (own / "zarr.json").write_text(text.replace('"batch_size": 8', '"batch_size": 9'))
    found = checksum_of(json.loads((own / "zarr.json").read_text())["attributes"]["clipglot"])
    what = (
        f"{own} has damaged metadata: zarr.json, 'clipglot' has crc32c {found}, expected {expected} "
        "('clipglot_crc32c'); the file was damaged, or edited by hand: "
    )
    restore = "put back what it held, or delete the cache and make it again"
    for command in (["verify"], ["inspect"], ["convert", own.with_name("x.h5")]):
        result = run(command[0], own, *command[1:])
        assert (result.exit_code, result.stderr) == (1, f"Error: {what}{restore}\n")
    with pytest.raises(CacheError, match=f"by hand: upload it again from the cache .*, or {restore}"):
        Cache(bucket.upload(own, "edited.zarr"))
    (own / "zarr.json").write_text(text.replace(f',\n    "{CHECKSUM}": {expected}', ""))
    with pytest.raises(CacheError, match=rf"has crc32c {expected}, expected None \('clipglot_crc32c'\)"):
        Cache(own)
    (own / "zarr.json").write_text(json.dumps(json.loads(text), sort_keys=True))  # the same content
    assert verify(Cache(own)) == []


@pytest.mark.parametrize("damage", ["emptied", "cut"])
def test_a_broken_root_zarr_json_is_named_with_a_remedy(damage: str, own: Path, bucket: Bucket) -> None:
    DAMAGES[damage](own / "zarr.json")
    restore = "put back what it held, or delete the cache and make it again"
    for command in ("verify", "inspect"):
        result = run(command, own)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: {own} is no cache, or its zarr.json is damaged (")
        assert result.stderr.endswith(f"): pass a cache; if this was one, {restore}\n")
    with pytest.raises(CacheError, match=f"if this was one, upload it again from .*, or {restore}"):
        Cache(bucket.upload(own, f"broken-{damage}.zarr"))


def test_the_metadata_of_every_cache_list_its_arrays(
    located: Path,
    tiny_cache: Path,
    translated_caches: dict[str, Path],
    manifest: Path,
    make_cache: Callable[..., Any],
    tmp_path: Path,
) -> None:
    grown = tmp_path / "grown.zarr"
    make_cache(located.parent / "shards", grown, text_field=("caption",))
    make_cache(manifest, grown, append=True, text_field=("text",), language=("ru",))
    assert run("convert", located, tmp_path / "located.h5").exit_code == 0
    concatenate_caches([Cache(tiny_cache), Cache(located)], tmp_path / "merged.zarr", prefixes=["a", "b"])
    for path in (
        located,
        tiny_cache,
        *translated_caches.values(),
        grown,
        tmp_path / "located.h5",
        tmp_path / "merged.zarr",
    ):
        cache = Cache(path)
        groups, arrays = cache.arrays.nodes()
        assert cache.info.arrays is not None
        assert sorted(cache.info.arrays) == [name for name in sorted(arrays) if not name.startswith("tokens/")]
        assert parent_groups(arrays) == sorted(groups)
        assert verify(cache) == []
    assert Cache(grown).arrays.has("captions/language")
    assert not Cache(tiny_cache).arrays.has("captions/language")


def test_an_older_cache_is_readable_and_gets_array_names_and_checksum_when_written(
    own: Path, located: Path, manifest: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    make_older(own)
    cache = Cache(own)
    assert (cache.info.arrays, cache.arrays.has("captions/language"), cache.arrays.has("source/file")) == (
        None,
        True,
        True,
    )
    assert verify(cache) == []
    assert sorted(cache.array_names) == sorted(Cache(located).array_names)
    assert run("convert", own, tmp_path / "c.h5").exit_code == 0
    assert run("convert", tmp_path / "c.h5", tmp_path / "back.zarr").exit_code == 0
    assert Cache(tmp_path / "back.zarr").info == cache.info
    assert files(tmp_path / "back.zarr") | {"zarr.json": b""} == files(own) | {"zarr.json": b""}
    assert CHECKSUM in Cache(tmp_path / "back.zarr").arrays.root.attrs
    (own / "images/hash/zarr.json").write_bytes(b"")
    (fault,) = map(str, verify(Cache(own)))
    assert fault.startswith(f"{own}: images/hash/zarr.json is absent or damaged (")
    shutil.copyfile(located / "images/hash/zarr.json", own / "images/hash/zarr.json")
    make_cache(manifest, own, append=True, text_field=("text",))
    assert verify(Cache(own)) == []
    assert sorted(Cache(own).info.arrays or ()) == sorted(Cache(located).array_names)
    assert CHECKSUM in Cache(own).arrays.root.attrs


def test_an_array_list_with_other_values_than_names_is_damage(own: Path) -> None:
    edit(own, arrays=["images/emb", 3])
    with pytest.raises(CacheError, match=r"damaged metadata \(arrays is \['images/emb', 3\]\): cache again"):
        Cache(own)


def test_metadata_keep_their_stored_keys(own: Path) -> None:
    stored = json.loads((own / "zarr.json").read_text())["attributes"]["clipglot"]
    assert (stored["num_pictures"], "num_images" in stored) == (Cache(own).info.num_images, False)
