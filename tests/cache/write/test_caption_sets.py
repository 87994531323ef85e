"""Caption sets: further captions of a sealed cache, matched by key, while every byte of its images stays."""

import gzip
import json
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from clipglot.cache.errors import CacheError
from clipglot.cache.format import CHECKSUM, SETS_ATTRIBUTE, SETS_CHECKSUM, CacheInfo
from clipglot.cache.metadata import checksum_of
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.caption_sets import with_captions
from clipglot.cache.read.verify import verify
from clipglot.cache.storage.atomic import lock_folder
from clipglot.distill.errors import DistillError
from clipglot.jobs.captions import CaptionsResult, add_captions
from clipglot.jobs.settings.captions import CaptionsSettings
from support.cache_bytes import files
from support.caption_tables import ENGLISH, english, german, key, write_table
from support.command_line import run

Make = Callable[..., Any]


@pytest.fixture
def cache(tiny_cache: Path, tmp_path: Path) -> Path:
    """A cache of forty images to add to."""
    return Path(shutil.copytree(tiny_cache, tmp_path / "c.zarr", ignore=shutil.ignore_patterns("tokens")))


def add(cache: Path, file: Path | None = None, **settings: Any) -> CaptionsResult:
    return add_captions(CaptionsSettings(cache=cache, file=file, **settings))


def read_all(cache: Path, name: str) -> None:
    opened = with_captions(Cache(cache), [name])
    opened.caption_image()
    opened.captions()
    opened.languages()


def pairs(cache: Path, *names: str) -> list[tuple[int, str]]:
    opened = with_captions(Cache(cache), names)
    return list(zip(opened.caption_image().tolist(), opened.captions(), strict=True))


def test_a_set_has_the_captions_of_the_table_by_image_and_every_byte_of_the_cache_stays(
    cache: Path, tmp_path: Path
) -> None:
    before = files(cache)
    result = add(cache, english(tmp_path / "en.csv", range(5, 25)), language=("en",))
    after = files(cache)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed == {"zarr.json"}  # which names the set
    assert all(name.startswith("caption_sets/") for name in after.keys() - before)
    expected = [(i, text) for i in range(5, 25) for text in (f"{ENGLISH[i % 4]} {i}", ENGLISH[i % 4])]
    assert pairs(cache, "en") == expected
    assert (result.action, result.info.name, result.languages) == ("added", "en", {"en": 40})
    assert result.added is not None
    assert (result.added.num_rows, result.added.num_unmatched, result.added.num_images) == (40, 0, 20)
    assert verify(Cache(cache)) == []
    # What a version without sets reads: the metadata have no field that it does not know.
    stored = json.loads(after["zarr.json"])["attributes"]
    assert stored["clipglot"] == json.loads(before["zarr.json"])["attributes"]["clipglot"]
    assert stored[CHECKSUM] == checksum_of(stored["clipglot"])
    assert CacheInfo.from_attributes(stored, "c").num_captions == len(pairs(cache, "source"))


def test_chosen_captions_are_those_of_all_sets_by_image_whatever_the_order_of_names(
    cache: Path, tmp_path: Path
) -> None:
    own = pairs(cache)
    add(cache, english(tmp_path / "en.csv", range(0, 40, 2)), language=("en",))
    add(cache, german(tmp_path / "de.tsv", range(0, 40, 3)), name="german")
    opened = with_captions(Cache(cache), ["german", "source", "en"])
    assert opened.caption_names == ("source", "en", "german")
    rows, texts, tags = opened.caption_image(), opened.captions(), opened.languages()
    assert tags is not None
    assert opened.info.num_captions == len(texts) == len(own) + 40 + 14
    assert (np.diff(rows) >= 0).all()
    found = list(zip(rows.tolist(), texts, strict=True))
    for name, tag in (("source", "source"), ("en", "en"), ("german", "german")):  # the tag, or the set's name
        assert [pair for pair, own_tag in zip(found, tags, strict=True) if own_tag == tag] == pairs(cache, name)
    assert opened.count_languages() == {"source": len(own), "en": 40, "german": 14}
    for start, stop in ((0, 7), (3, 4), (50, 90), (len(texts) - 3, len(texts) + 9), (9, 9)):
        assert opened.captions(start, stop) == texts[start:stop]
        assert opened.languages(start, stop) == tags[start:stop]
    assert opened.captions_by_image(slice(4, 6), rows)[0] == [text for row, text in found if row == 4]
    assert with_captions(Cache(cache), []).captions() == Cache(cache).captions()
    with pytest.raises(CacheError, match=r"no captions 'fr'.*source, en, german"):
        with_captions(Cache(cache), ["fr"])


def test_a_name_is_taken_until_it_is_replaced_added_to_or_dropped(cache: Path, tmp_path: Path) -> None:
    first, second = english(tmp_path / "a.csv", range(10)), english(tmp_path / "b.csv", range(5, 15))
    add(cache, first, name="en")
    held = files(cache)
    with pytest.raises(CacheError, match=r"--replace.*--add"):
        add(cache, second, name="en")
    with pytest.raises(CacheError, match="already"):
        add(cache, first, name="en", add=True)
    for flag in ({"replace": True}, {"add": True}):
        with pytest.raises(CacheError, match="no caption set 'fr'"):
            add(cache, second, name="fr", **flag)
    with pytest.raises(CacheError, match="no caption set 'fr'"):
        add(cache, name="fr", drop=True)
    assert files(cache) == held

    old = pairs(cache, "en")
    extended = add(cache, second, name="en", add=True)
    assert extended.action == "extended"
    assert sorted(pairs(cache, "en")) == sorted(
        old
        + [pair for pair in pairs(cache, "en") if pair not in old]
        + [(i, text) for i in range(5, 10) for text in (f"{ENGLISH[i % 4]} {i}", ENGLISH[i % 4])]
    )
    assert len(pairs(cache, "en")) == 40
    assert [Path(source.path).name for source in extended.info.sources] == ["a.csv", "b.csv"]
    assert add(cache, second, name="en", replace=True).action == "replaced"
    assert {row for row, _ in pairs(cache, "en")} == set(range(5, 15))
    assert len(list((cache / "caption_sets").iterdir())) == 2  # its zarr.json and the one set
    assert verify(Cache(cache)) == []
    assert add(cache, name="en", drop=True).action == "dropped"
    assert [path.name for path in (cache / "caption_sets").iterdir()] == ["zarr.json"]
    assert Cache(cache).arrays.caption_sets() == []
    assert verify(Cache(cache)) == []


def test_records_without_an_image_are_counted_and_named_and_none_with_one_is_an_error(
    cache: Path, tmp_path: Path
) -> None:
    table = write_table(tmp_path / "en.csv", [(f"./{key(i)}" if i % 2 else key(i), "a text") for i in range(20)])
    added = add(cache, table).added
    assert added is not None
    assert (added.num_rows, added.num_unmatched, added.info.num_captions) == (20, 10, 10)
    assert added.unmatched == [f"./{key(i)}" for i in (1, 3, 5, 7, 9)]
    held = files(cache)
    strange = write_table(tmp_path / "strange.csv", [(f"/data/{key(i)}", "a text") for i in range(20)])
    with pytest.raises(CacheError, match=r"/data/images/0000.png.*'images/0000.png'.*--image-field"):
        add(cache, strange)
    empty = write_table(tmp_path / "empty.csv", [(key(0), "  "), (key(1), "")])
    with pytest.raises(CacheError, match=r"no captions for images.*2 are left out \(empty\)"):
        add(cache, empty)
    with pytest.raises(CacheError, match=r"no field 'file'.*--image-field"):
        add(cache, strange, image_field="file")
    assert files(cache) == held


def test_every_kind_of_table_gives_the_same_captions(cache: Path, tmp_path: Path) -> None:
    rows = [(key(i), [f"{ENGLISH[i % 4]} {i}", None, "two\nlines"]) for i in (7, 3, 39)]
    records = [{"name": name, "caption": captions, "lang": ["en", "en", "de"]} for name, captions in rows]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "a.json").write_text(json.dumps(records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    images = [{"id": i, "file_name": record["name"]} for i, record in enumerate(records)]
    notes = [{"image_id": i, "caption": text} for i, record in enumerate(records) for text in record["caption"] if text]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": notes}))
    fields = {"image_field": "name", "text_field": ("caption",), "language_field": "lang"}
    for suffix in ("jsonl", "json", "parquet"):
        add(cache, tmp_path / f"a.{suffix}", name=suffix, **fields)
        assert with_captions(Cache(cache), [suffix]).languages() == ["en", "de"] * 3
    add(cache, tmp_path / "coco.json")
    expected = [(i, text) for i in (3, 7, 39) for text in (f"{ENGLISH[i % 4]} {i}", "two\nlines")]
    assert [pairs(cache, name) for name in ("jsonl", "json", "parquet", "coco")] == [expected] * 4
    with pytest.raises(CacheError, match="no table of captions"):
        add(cache, tmp_path_of_images(tmp_path), name="folder")


def tmp_path_of_images(folder: Path) -> Path:
    """A folder of images with captions beside them."""
    (folder / "sidecars").mkdir()
    (folder / "sidecars/a.png").write_bytes(b"\x89PNG")
    (folder / "sidecars/a.txt").write_text("a caption")
    return folder / "sidecars"


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".hidden", "source", "ru\n", "x" * 65, "имя"])
def test_a_name_is_no_path(name: str, cache: Path) -> None:
    with pytest.raises(DistillError, match="--name"):
        CaptionsSettings(cache=cache, file=Path("en.csv"), name=name)
    with pytest.raises(CacheError, match="no captions"):
        with_captions(Cache(cache), [name, "x"])


def test_the_name_is_by_default_the_language_or_that_of_the_file(cache: Path) -> None:
    def name(file: str, **settings: Any) -> str:
        return CaptionsSettings(cache=cache, file=Path(file), **settings).set_name

    assert name("a/captions.v2.jsonl.gz") == "captions.v2"
    assert name("captions.csv", language=("pt-BR",)) == "pt-BR"
    assert name("captions.csv", language=("en", "ru"), text_field=("a", "b")) == "captions"
    with pytest.raises(DistillError, match="--name"):
        name("my captions.csv")
    for wrong in ({"drop": True}, {"replace": True, "add": True}, {"drop": True, "file": None}, {"file": None}):
        with pytest.raises(DistillError):
            CaptionsSettings(**{"cache": cache, "file": Path("en.csv")} | wrong)


def test_hostile_captions_are_left_out_or_kept_as_they_are(cache: Path, tmp_path: Path) -> None:
    odd = ["\x1b[31mred", "a\u202eb", "😀" * 1000, '"quoted", \\n', "=1+1"]
    lines = [{"image": key(i), "text": text} for i, text in enumerate(odd)]
    lines += [{"image": key(6), "text": ["a\0b", "x" * 70_000, "", "fine"]}]
    table = "".join(json.dumps(line) + "\n" for line in lines) + '{"image": "images/0007.png", "text": "\\ud83d"}\n'
    (tmp_path / "odd.jsonl").write_text(table)
    info = add(cache, tmp_path / "odd.jsonl").info
    assert [text for _, text in pairs(cache, "odd")] == [*odd, "fine"]
    assert info.dropped_captions == {"holds NUL": 1, "too long": 1, "empty": 1, "not unicode": 1}
    assert verify(Cache(cache)) == []


DYING = """
import os, signal
from clipglot.cache.storage import local as files
at, num = {at}, 0
def counted(function):
    def wrapper(*arguments, **named):
        global num
        num += 1
        if num == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return wrapper
files.atomic_write = counted(files.atomic_write)
files.DurableLocalStore.delete_below = counted(files.DurableLocalStore.delete_below)
import atexit
atexit.register(lambda: print("steps", num))
"""


@pytest.mark.parametrize("flag", [[], ["--add"], ["--replace"]], ids=str)
@pytest.mark.parametrize("at_steps", ["some", pytest.param("many", marks=pytest.mark.slow)])
def test_a_kill_at_any_step_leaves_the_set_as_it_was_or_whole(
    flag: list[str], at_steps: str, cache: Path, tmp_path: Path, start_command: Any
) -> None:
    add(cache, german(tmp_path / "de.csv", range(40)), name="de")
    if flag:
        add(cache, english(tmp_path / "old.csv", range(9)), name="en")
    shutil.copytree(cache, tmp_path / "old.zarr")
    command = ["captions", cache, english(tmp_path / "new.csv", range(30)), "--name", "en", *flag]
    said = start_command(*command, script=DYING.format(at=-1)).succeed()
    num, whole, other = int(said.split("steps ")[1]), pairs(cache, "en"), pairs(cache, "de")
    before = pairs(tmp_path / "old.zarr", "en") if flag else None
    assert num > 10
    seen = set()
    for at in (1, num // 2, num - 1) if at_steps == "some" else (*range(1, num, 4), num):
        shutil.rmtree(cache)
        shutil.copytree(tmp_path / "old.zarr", cache)
        assert start_command(*command, script=DYING.format(at=at)).wait() == -signal.SIGKILL
        opened = Cache(cache)
        assert verify(opened) == []
        found = pairs(cache, "en") if "en" in [info.name for info in opened.arrays.caption_sets()] else None
        assert found in (before, whole)
        assert pairs(cache, "de") == other
        seen.add(found == whole)
        images = {name: content for name, content in files(cache).items() if name.startswith("images/")}
        assert images == {n: c for n, c in files(tmp_path / "old.zarr").items() if n.startswith("images/")}
        if found != whole:
            assert start_command(*command).wait() == 0
        else:
            add(cache, german(tmp_path / "more.csv", range(3)), name="more")  # sweeps what the killed one left
        groups = {info.group for info in Cache(cache).arrays.caption_sets()}
        assert {path.name for path in (cache / "caption_sets").iterdir()} == {*groups, "zarr.json"}
    assert False in seen


def test_damage_of_a_set_is_found_and_told_how_to_mend(cache: Path, tmp_path: Path) -> None:
    add(cache, english(tmp_path / "en.csv", range(30)), name="en")
    group = cache / Cache(cache).arrays.caption_sets()[0].path
    for file in sorted(path for path in group.rglob("*") if path.is_file() and "/c/" in str(path)):
        held = file.read_bytes()
        file.write_bytes(bytes([held[0] ^ 1]) + held[1:])
        (fault,) = verify(Cache(cache))
        assert str(file.relative_to(cache)) in fault.message
        assert "clipglot captions" in fault.remedy
        assert "--name en --replace" in fault.remedy
        file.unlink()
        assert len(verify(Cache(cache))) == 1
        with pytest.raises(CacheError):
            read_all(cache, "en")
        file.write_bytes(held)
    assert verify(Cache(cache)) == []
    assert Cache(cache).captions()  # the cache's own do not depend on any of it


@pytest.mark.parametrize(
    "edit",
    [
        lambda stored: stored[0].update(num_captions=7),
        lambda stored: stored[0].update(group="../captions"),
        lambda stored: stored[0].update(name="../x", group="../x-00000000"),
        lambda stored: stored[0].update(languages=[]),
        lambda stored: stored[0].pop("sha256"),
        lambda stored: stored[0].update(sources=[{"path": 3}]),
        lambda stored: stored.append(stored[0]),
        lambda stored: stored.append("en"),
        lambda stored: stored[0].update(sha256="0" * 64),
    ],
)
@pytest.mark.parametrize("is_signed", [False, True])
def test_edited_metadata_of_sets_are_refused(
    edit: Callable[[Any], object], is_signed: bool, cache: Path, tmp_path: Path
) -> None:
    add(cache, english(tmp_path / "en.csv", range(30)), name="en")
    root = json.loads((cache / "zarr.json").read_text())
    edit(root["attributes"][SETS_ATTRIBUTE])
    if is_signed:
        root["attributes"][SETS_CHECKSUM] = checksum_of(root["attributes"][SETS_ATTRIBUTE])
    (cache / "zarr.json").write_text(json.dumps(root))
    assert Cache(cache).captions()  # the cache itself is whole
    assert verify(Cache(cache))
    if not is_signed:
        with pytest.raises(CacheError, match="damaged metadata of caption sets"):
            with_captions(Cache(cache), ["en"])


def test_sets_of_wrong_rows_or_codes_are_refused(cache: Path, tmp_path: Path) -> None:
    add(cache, english(tmp_path / "en.csv", range(30)), name="en")
    root = zarr.open_group(cache, mode="r+")
    path = Cache(cache).arrays.caption_sets()[0].path
    for name, value in (("image", 40), ("image", -1), ("language", 1)):
        array: Any = root[f"{path}/{name}"]
        held = (cache / path / name / "c/0").read_bytes()
        array[3] = value
        opened = with_captions(Cache(cache), ["en"])
        with pytest.raises(CacheError, match=f"{path}/{name}"):
            opened.caption_image() if name == "image" else opened.language_codes()
        assert verify(Cache(cache))
        (cache / path / name / "c/0").write_bytes(held)
    assert verify(Cache(cache)) == []


def test_sets_are_carried_by_convert_merge_and_append(
    cache: Path, manifest: Path, make_cache: Make, tmp_path: Path
) -> None:
    from clipglot.cache.write.convert import convert
    from clipglot.cache.write.merge import concatenate_caches

    add(cache, english(tmp_path / "en.csv", range(30)), name="en")
    expected = pairs(cache, "en")
    convert(Cache(cache), tmp_path / "c.h5")
    convert(Cache(tmp_path / "c.h5"), tmp_path / "again.zarr")
    for copy in (tmp_path / "c.h5", tmp_path / "again.zarr"):
        assert pairs(copy, "en") == expected
        assert Cache(copy).arrays.caption_sets() == Cache(cache).arrays.caption_sets()
        assert verify(Cache(copy)) == []
    with pytest.raises(CacheError, match="HDF5 file is only read"):
        add(tmp_path / "c.h5", tmp_path / "en.csv", name="more")

    other = tmp_path / "other.zarr"
    shutil.copytree(cache, other)
    add(other, german(tmp_path / "de.csv", range(9)), name="de")
    add(other, english(tmp_path / "few.csv", range(3)), name="en", replace=True)
    concatenate_caches([Cache(cache), Cache(other)], tmp_path / "m.zarr", prefixes=["a", "b"])
    assert pairs(tmp_path / "m.zarr", "en") == expected + [(40 + row, text) for row, text in pairs(other, "en")]
    assert pairs(tmp_path / "m.zarr", "de") == [(40 + row, text) for row, text in pairs(other, "de")]
    assert verify(Cache(tmp_path / "m.zarr")) == []

    more = manifest.parent / "images"
    table = tmp_path / "more.jsonl"
    shutil.copy(more / "0001.png", more / "9999.png")
    try:
        table.write_text(json.dumps({"image": "images/9999.png", "text": "new"}) + "\n")
        make_cache(table, cache, append=True, image_root=manifest.parent)
    finally:
        (more / "9999.png").unlink()
    assert len(Cache(cache)) == 41
    assert pairs(cache, "en") == expected
    assert verify(Cache(cache)) == []


def test_a_cache_that_is_not_complete_or_at_a_url_is_refused(
    manifest: Path, make_cache: Make, cache: Path, tmp_path: Path
) -> None:
    from clipglot.cache.location import to_location
    from support.cache_bytes import delete_chunks

    table = english(tmp_path / "en.csv", range(30))
    with pytest.raises(CacheError, match="copy of the cache on a local disk"):
        add_captions(CaptionsSettings(cache=to_location("s3://bucket/c.zarr"), file=table))
    with pytest.raises(CacheError, match="no such cache"):
        add(tmp_path / "absent.zarr", table)
    assert not (tmp_path / "absent.zarr").exists()
    opened = Cache(cache, read_only=False)
    opened.arrays.invalidate([("images/status", (0,))])
    delete_chunks(cache, 1)
    with pytest.raises(CacheError, match="not complete"):
        add(cache, table)


def test_another_column_of_a_parquet_file_with_images_is_matched_by_row(
    manifest: Path, make_cache: Make, tmp_path: Path
) -> None:
    files_ = sorted((manifest.parent / "images").glob("*.png"))[:9]
    records = [
        {"image": {"bytes": file.read_bytes(), "path": file.name}, "text": f"picture {i}", "ru": f"картинка {i}"}
        for i, file in enumerate(files_)
    ]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "data.parquet")
    make_cache(tmp_path / "data.parquet", tmp_path / "c.zarr")
    add(tmp_path / "c.zarr", tmp_path / "data.parquet", text_field=("ru",), language=("ru",))
    assert pairs(tmp_path / "c.zarr", "ru") == [(i, f"картинка {i}") for i in range(9)]
    with gzip.open(tmp_path / "few.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"image": "data.parquet#4", "text": "four"}))
    add(tmp_path / "c.zarr", tmp_path / "few.jsonl.gz")
    assert pairs(tmp_path / "c.zarr", "few") == [(4, "four")]


def test_rows_of_another_table_with_images_are_no_keys(manifest: Path, make_cache: Make, tmp_path: Path) -> None:
    """Any such table has rows of these numbers: they would be captions of other images."""
    files_ = sorted((manifest.parent / "images").glob("*.png"))[:9]
    records = [
        {"image": {"bytes": file.read_bytes(), "path": file.name}, "text": f"p {i}"} for i, file in enumerate(files_)
    ]
    for folder, rows in (("own", records), ("other", records[::-1])):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / folder / "data.parquet")
    make_cache(tmp_path / "own" / "data.parquet", tmp_path / "c.zarr")
    with pytest.raises(CacheError, match=r"other/data\.parquet has images inside, .* with captions of others"):
        add(tmp_path / "c.zarr", tmp_path / "other" / "data.parquet")
    assert not Cache(tmp_path / "c.zarr").arrays.caption_sets()


def test_the_command_tells_what_it_did(cache: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "en.csv", [(key(0), "a text"), ("nowhere.png", "another"), (key(1), " ")])
    added = run("captions", cache, table, "--language", "en")
    assert added.exit_code == 0
    assert "caption set en: 1 captions (en 1) of 1 images" in added.output
    assert "1 of 3 records" in added.output
    assert "'nowhere.png'" in added.output
    assert "1 captions were left out (empty)" in added.output
    shown = run("inspect", cache)
    assert "caption set en" in shown.output
    told = json.loads(run("inspect", cache, "--json").output)["caption_sets"]
    assert [(each["name"], each["num_captions"], each["languages"]) for each in told] == [("en", 1, {"en": 1})]
    replaced = json.loads(run("captions", cache, table, "--name", "en", "--replace", "--json").output)
    assert replaced["action"] == "replaced"
    assert (replaced["num_unmatched"], replaced["unmatched"]) == (1, ["nowhere.png"])
    assert run("captions", cache, table, "--name", "en").exit_code == 1
    assert run("captions", cache).exit_code == 2
    assert json.loads(run("captions", cache, "--name", "en", "--drop", "--json").output)["action"] == "dropped"


def test_a_pass_that_is_running_keeps_the_command_out(cache: Path, tmp_path: Path) -> None:
    with lock_folder(cache, shared=True), pytest.raises(CacheError, match="another clipglot command"):
        add(cache, english(tmp_path / "en.csv", range(3)))
    opened = Cache(cache, read_only=False)
    add(cache, english(tmp_path / "en.csv", range(3)))
    opened.arrays.write_info(opened.info)  # by a command that opened the cache before
    assert len(pairs(cache, "en")) == 6


SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.skipif(not (SHARED_DATA / "flickr8k").is_dir(), reason="needs ../shared/data")
def test_real_captions_added_later_are_those_cached_at_once(make_cache: Make, tmp_path: Path) -> None:
    """Chinese and English captions of photographs, of which some have one less."""
    table = SHARED_DATA / "flickr8k" / "val.jsonl"
    settings = {"limit": 60, "image_root": table.parent}
    make_cache(table, tmp_path / "both.zarr", text_field=("zh", "en"), language=("zh", "en"), **settings)
    make_cache(table, tmp_path / "c.zarr", text_field=("zh",), language=("zh",), **settings)
    result = add(tmp_path / "c.zarr", table, text_field=("en",), language=("en",))
    assert result.added is not None
    assert result.added.num_unmatched == 940
    both, chosen = Cache(tmp_path / "both.zarr"), with_captions(Cache(tmp_path / "c.zarr"), ["source", "en"])
    assert chosen.captions() == both.captions()
    assert chosen.languages() == both.languages()
    assert chosen.caption_image().tolist() == both.caption_image().tolist()


def test_links_of_a_strangers_cache_are_not_followed_when_leftovers_are_deleted(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "mine/0123abcd").mkdir(parents=True)
    (tmp_path / "mine/0123abcd/letter.txt").write_text("dear")
    add(cache, english(tmp_path / "en.csv", range(3)))
    (cache / "caption_sets/letters").symlink_to(tmp_path / "mine")
    (cache / "tokens").mkdir()
    (cache / "tokens/0123abcd").symlink_to(tmp_path / "mine/0123abcd")
    add(cache, name="en", drop=True)
    shutil.rmtree(cache / "tokens")
    (cache / "tokens").symlink_to(tmp_path / "mine")
    shutil.rmtree(cache / "caption_sets")
    (cache / "caption_sets").symlink_to(tmp_path / "mine")
    with suppress(CacheError):
        add(cache, tmp_path / "en.csv")
    assert (tmp_path / "mine/0123abcd/letter.txt").read_text() == "dear"
