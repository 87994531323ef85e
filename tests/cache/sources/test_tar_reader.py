"""Images in tars, by extension and by name. Hostile tars cost rows or are refused by name."""

import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import SourceInfo, Status
from clipglot.cache.sources.kinds import open_source
from clipglot.cache.sources.tar_index import BLOCK
from clipglot.cache.write.image_reader import reader_of
from support.source_contract import Planned, encoded_images
from support.tars import write_img2dataset, write_tar

IMAGES = encoded_images(12)
CAPTIONS = [f"подпись {i}" for i in range(12)]


def info_of(path: Path, **given: Any) -> SourceInfo:
    info = SourceInfo(path=str(path), sha256="", image_root="", image_field="", text_fields=[])
    return SourceInfo(**vars(info) | given)


def planned(path: Path, **given: Any) -> Planned:
    return Planned.of(open_source(info_of(path, **given)))


def reads(path: Path, **given: Any) -> dict[str, tuple[list[str], bytes | Status]]:
    source = planned(path, **given)
    return dict(zip(source.keys, zip(source.captions, source.read(slice(None)), strict=True), strict=True))


def test_extensions_stand_in_for_each_other_in_order(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("x.v2/1.jpg", b"jpg"),
            ("x.v2/1.seg.png", b"mask"),
            ("x.v2/1.txt", b"text"),
            ("x.v2/1.json", b'{"caption": "json", "en": ["a", "b"]}'),
            ("x.v2/._1.jpg", b"of a Mac"),
            ("__meta__/2.jpg", b"no data"),
            ("2.png", b"png"),
            ("2.caption", b"caption"),
            ("3.webp", b"webp"),
            ("README", b"none"),
        ],
    )
    assert reads(path) == {
        "a.tar/x.v2/1": (["text"], b"jpg"),
        "a.tar/2": (["caption"], b"png"),
        "a.tar/3": ([], b"webp"),
    }
    fields = {"image_field": "seg.png;webp", "text_fields": ["en", "caption"]}
    assert reads(path, **fields) == {
        "a.tar/x.v2/1": (["a", "b", "json"], b"mask"),
        "a.tar/2": (["caption"], Status.MISSING),
        "a.tar/3": ([], b"webp"),
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_field": "jpg2"}, r"a\.tar: nowhere in it is any of 'jpg2' \(found: json, png\): pass --image-field"),
        ({"text_fields": ["ru"]}, r"nowhere in it is any of 'ru' \(found: json, png\): pass --text-field NAME"),
        ({"teacher_fields": ["en"]}, r"nowhere in it is any of 'en' .*: pass --teacher-field NAME"),
    ],
)
def test_a_field_that_the_first_tar_lacks_is_named(given: Any, message: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", b"x"), ("1.json", b'{"caption": "x"}')])
    with pytest.raises(CacheError, match=message):
        reads(path, **given)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.jpg", b"a"), ("1.txt", b"b"), ("1.jpg", b"c")], r"byte 2,560: '1\.jpg' comes a second time"),
        ([("1.jpg", b"a"), ("2.jpg", b"b"), ("1.txt", b"c")], r"'1' comes a second time: .* --sort=name"),
        ([("1.jpg", b"a"), ("1.json", b"{")], r"a\.tar: 1\.json is not JSON"),
        ([("1.jpg", b"a"), ("1.json", b"[" * 99_999)], r"a\.tar: 1\.json is not JSON"),
        ([("1.jpg", b"a"), ("1.json", b"[1]")], r"1\.json: expected a JSON object, found list"),
        ([("1.jpg", b"a"), ("1.json", b'{"caption": 3}')], r"a\.tar: 1: 'txt;caption' must be a string or a list"),
        ([("1.jpg", b"a"), ("1.txt", bytes(2**24 + 1))], r"'1\.txt' has 16,777,217 bytes, a text at most 16,777,216"),
    ],
)
def test_damaged_samples_are_refused(members: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=message):
        reads(write_tar(tmp_path / "a.tar", members))


def test_patterns_and_folders_name_the_same_tars(tmp_path: Path) -> None:
    for number in (8, 9, 10):
        write_tar(tmp_path / "sub" / f"{number:02}.tar", [(f"{number}.jpg", b"x"), (f"{number}.txt", b"y")])
    (tmp_path / "sub" / "notes.md").touch()
    for named in ("sub", "sub/*.tar", "sub/{08..10}.tar", "sub/{08,09,10}.tar"):
        assert list(reads(tmp_path / named)) == ["08.tar/8", "09.tar/9", "10.tar/10"]
    below = reads(tmp_path / "sub" / "{09..10}.tar", image_root=str(tmp_path))
    assert list(below) == ["sub/09.tar/9", "sub/10.tar/10"]
    with pytest.raises(CacheError, match=r"11\.tar: no such file: fetch it again"):
        reads(tmp_path / "sub/{08..11}.tar")
    with pytest.raises(CacheError, match=r"x\*\.tar: no \.tar there"):
        reads(tmp_path / "sub/x*.tar")
    with pytest.raises(CacheError, match=r"0\.tar\.gz: .* must not be compressed"):
        reads(tmp_path / "sub/0.tar.gz")
    (tmp_path / "other").mkdir()
    with pytest.raises(CacheError, match=r"08\.tar leads out of the image root .*/other: pass an --image-root"):
        reads(tmp_path / "sub", image_root=str(tmp_path / "other"))


def test_names_of_members_are_not_paths(tmp_path: Path) -> None:
    """Absolute names and those with `..` are read from the tar and nowhere else; keys are Unicode of one line."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    names = ["/etc/1", "../secret", "x/../../2", "new\nline", "caf\udce9", "кот"]
    path = tmp_path / "tars" / "a.tar"
    write_tar(
        path,
        [member for name in names for member in ((f"{name}.jpg", b"inside"), (f"{name}.txt", b"t"))],
        tarfile.GNU_FORMAT,
    )
    keys = ["a.tar//etc/1", "a.tar/../secret", "a.tar/x/../../2", "a.tar/new\\x0aline", "a.tar/caf\\xe9", "a.tar/кот"]
    assert reads(path) == {key: (["t"], b"inside") for key in keys}


def test_links_and_devices_cost_their_row(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number, (kind, target) in enumerate(
            [(tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../x"), (tarfile.CHRTYPE, ""), (tarfile.FIFOTYPE, "")]
        ):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = kind, target
            tar.addfile(info)
            tar.addfile(tarfile.TarInfo(f"{number}.txt"))
        tar.addfile(tarfile.TarInfo("5.jpg"))
        with open(tmp_path / "text", "wb+") as text:
            text.write(b"caption")
            text.seek(0)
            info = tarfile.TarInfo("5.txt")
            info.size = 7
            tar.addfile(info, text)
    assert [image for _, image in reads(path).values()] == [*[Status.UNREADABLE] * 4, b""]


def test_a_damaged_tar_is_refused_before_any_work(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
    path = write_tar(tmp_path / "tars" / "a.tar", [("1.jpg", IMAGES[0]), ("1.txt", b"x"), ("2.jpg", IMAGES[1])])
    path.write_bytes(path.read_bytes()[: BLOCK * 2 + 9000])
    with pytest.raises(CacheError, match=r"a\.tar, byte [\d,]+: ends at byte [\d,]+, .*: fetch or write it again"):
        make_cache(path, tmp_path / "c.zarr")
    assert not (tmp_path / "c.zarr").exists()


def test_planning_from_tables_opens_no_tar(tmp_path: Path) -> None:
    for tar in write_img2dataset(tmp_path, IMAGES, CAPTIONS):
        os.truncate(tar, 100)
    source = planned(tmp_path)
    assert source.keys == [f"{i // 4:05}.tar/{i // 4:05}{i % 4 * 2:04}" for i in range(12)]
    assert source.captions == [[caption] for caption in CAPTIONS]
    assert source.read(slice(0, 2)) == [Status.DAMAGED] * 2


def test_tables_and_headers_give_the_same_rows(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, IMAGES, [*CAPTIONS[:-1], None], en=[f"caption {i}" for i in range(12)])
    by_table, by_table_en = reads(tmp_path), reads(tmp_path, text_fields=["caption", "en"])
    assert [image for _, image in by_table.values()] == IMAGES
    (tmp_path / "00001.parquet").unlink()
    assert reads(tmp_path) == by_table
    for table in tmp_path.glob("*.parquet"):
        table.unlink()
    assert reads(tmp_path) == by_table
    assert reads(tmp_path, text_fields=["caption", "en"]) == by_table_en


def test_a_table_that_leads_out_of_the_root_is_refused(tmp_path: Path) -> None:
    write_img2dataset(tmp_path / "shards", IMAGES, CAPTIONS)
    table = tmp_path / "shards" / "00001.parquet"
    table.rename(tmp_path / "outside.parquet")
    table.symlink_to(tmp_path / "outside.parquet")
    with pytest.raises(CacheError, match=rf"^{table} leads out of the .* holds {tmp_path}/outside\.parquet$"):
        reads(tmp_path / "shards")
    assert [image for _, image in reads(tmp_path / "shards", image_root=str(tmp_path)).values()] == IMAGES


def test_a_condition_names_alternative_extensions_one_by_one(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            *(("1.png", b"1"), ("1.txt", b"a"), ("1.json", b'{"caption": "of the JSON"}')),
            *(("2.png", b"2"), ("2.caption", b"a")),
            *(("3.png", b"3"), ("3.txt", b"b"), ("3.caption", b"c"), ("3.json", b'{"txt": "a", "caption": "a"}')),
        ],
    )
    for where, expected in (
        ("txt == 'a'", ["1"]),
        ("caption == 'a'", ["2"]),
        ("txt == 'b' and caption == 'c'", ["3"]),
        ("caption == 'of the JSON'", ["1"]),
        ("txt is None", ["2"]),
    ):
        assert planned(tmp_path, where=where).keys == [f"a.tar/{name}" for name in expected]
    assert planned(tmp_path, where="txt == 'b'").captions == [["b"]]
    with pytest.raises(CacheError, match=r"no field 'text' \(found: caption, txt;caption, txt\): change --where"):
        planned(tmp_path, where="text == 'a'")


def test_samples_that_are_left_out_are_counted(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, IMAGES, CAPTIONS, n=list(range(12)))
    for _ in ("by its tables", "by its headers"):
        source = open_source(info_of(tmp_path, where="n >= 5"))
        assert len(list(source.rows())) == 7
        assert source.left_out == {"--where": 5}
        for table in tmp_path.glob("*.parquet"):
            table.unlink()


def test_an_image_that_is_not_in_its_tar_is_missing(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, IMAGES, CAPTIONS)
    write_tar(tmp_path / "00001.tar", [("000010000.png", IMAGES[4]), ("000010002.txt", b"without image")])
    assert [image for _, image in reads(tmp_path).values()] == [*IMAGES[:5], *[Status.MISSING] * 3, *IMAGES[8:]]


def test_damaged_tables_are_refused_with_the_remedy(tmp_path: Path) -> None:
    write_img2dataset(tmp_path, IMAGES, CAPTIONS)
    with pytest.raises(CacheError, match=r"00000\.parquet: nowhere .* 'ru' \(found: url, caption, .*pass --text-field"):
        reads(tmp_path, text_fields=["ru"])
    (tmp_path / "00002.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(CacheError, match=r"00002\.parquet is not readable as Parquet .*or delete it"):
        reads(tmp_path)
    pq.write_table(pq.read_table(tmp_path / "00000.parquet").drop(["status"]), tmp_path / "00002.parquet")
    assert [image for _, image in reads(tmp_path).values()] == IMAGES  # another program's table is not used


def test_an_absent_or_shorter_tar_stops_the_pass_which_resumes(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
    members = [
        member
        for i, image in enumerate(IMAGES)
        for member in ((f"{i}.png", image), (f"{i}.json", json.dumps({"caption": CAPTIONS[i]}).encode()))
    ]
    tars = [write_tar(tmp_path / "tars" / f"{n}.tar", members[n * 8 : n * 8 + 8]) for n in range(3)]
    whole = make_cache(tmp_path / "tars", tmp_path / "whole.zarr").cache
    cache = make_cache(tmp_path / "tars", tmp_path / "c.zarr").cache
    (tmp_path / "c.zarr" / "images" / "status" / "c" / "0").unlink()
    reader = reader_of(cache)
    content = tars[0].read_bytes()

    def read() -> list[bytes | Status]:
        return list(reader_of(cache).read(0, cache.keys(0, 4), cache.locators(0, 4)))

    assert list(reader.read(3, cache.keys(3, 6), cache.locators(3, 6))) == IMAGES[3:6]
    tars[0].write_bytes(content[:1000])
    with pytest.raises(CacheError, match=r"0\.tar has 1,000 bytes, but an image of [\d,]+ lies at byte 512"):
        read()
    tars[0].unlink()
    with pytest.raises(CacheError, match=re.escape(f"{tars[0]} cannot be read (missing): put it back")):
        read()
    tars[0].write_bytes(content)
    result = make_cache(tmp_path / "tars", tmp_path / "c.zarr")
    assert result.resumed
    assert (result.cache.image_emb() == whole.image_emb()).all()
