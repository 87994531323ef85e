"""Sidecars keep the contract of sources, and nothing in a folder of images vanishes unsaid."""

import json
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.location import Entry, Location, entries, to_location
from clipglot.cache.sources import sidecars
from clipglot.cache.sources.image_names import has_image_extension, is_image_signature
from clipglot.cache.sources.tar_index import split_name
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from support import source_makers as makers
from support.source_contract import Made, Planned, SourceContract, encoded_images
from support.tars import write_tar


class TestSidecars(makers.Sidecars):
    pass


class TestImg2datasetFiles(makers.Img2datasetFiles):
    pass


IMAGE = encoded_images(1)[0]
FILES: dict[str, bytes] = {
    "a/1.jpg": IMAGE,
    "a/1.txt": b"one",
    "a/2.jfif": IMAGE,
    "a/2.caption": b"two",
    "a/3.0 (x).png": IMAGE,
    "a/3.0 (x).txt": b"three",
    "a/b/4": IMAGE,
    "a/b/5.JPG": IMAGE,
    "a/b/5.json": b'{"caption": "five"}',
    "a/b/6.dat": IMAGE,
    "a/b/6.txt": b"six",
    "a/lonely.txt": b"no image",
    "a/notes.md": b"notes",
    "a/b/.hidden.txt": b"hidden",
    "out.zarr/zarr.json": b"{}",
    "out.zarr/images/1.jpg": IMAGE,
}


def test_every_file_is_a_row_or_counted(tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    source = SourceContract.open(Made(tmp_path))
    assert source.kind == "sidecars"
    assert {row.key: list(row.captions) for row in source.rows()} == {
        "a/1.jpg": ["one"],
        "a/2.jfif": ["two"],
        "a/3.0 (x).png": ["three"],
        "a/b/4": [],
        "a/b/5.JPG": ["five"],
        "a/b/6.dat": ["six"],
    }
    assert source.left_out == {"texts without an image (.txt)": 1, "files of other kinds (.md)": 1}


stems = st.sampled_from(["1", "a", "A", "flower", "flower.red", "flower.blue", "J.Smith", "2.0", "x.seg", "猫.v1"])
extensions_of_files = st.sampled_from(["jpg", "JPG", "png", "Png", "heic", "txt", "TXT", "caption", "md", "cls"])


@settings(max_examples=60, deadline=None)
@given(names=st.sets(st.tuples(stems, extensions_of_files).map(".".join), max_size=16))
def test_any_file_is_a_row_or_a_caption_or_counted(names: set[str]) -> None:
    with TemporaryDirectory() as folder:
        names |= {"0.jpg", "0.txt"}
        for name in names:
            Path(folder, name).write_bytes(IMAGE if has_image_extension(name) else name.encode())
        source = SourceContract.open(Made(Path(folder)))
        rows = {row.key: list(row.captions) for row in source.rows()}
    assert source.kind == "sidecars"
    assert rows.keys() == {name for name in names if has_image_extension(name)}
    for name, captions in rows.items():
        stem = name.rpartition(".")[0]
        beside = [f"{stem}.{text}" for text in ("TXT", "txt", "caption") if f"{stem}.{text}" in names]
        assert captions == beside[:1], name
    used = {caption for captions in rows.values() for caption in captions}
    assert sum(source.left_out.values()) == len(names) - len(rows) - len(used)


def test_a_field_of_sidecars_may_have_a_dot_and_images_be_chosen(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.seg.png", "2.png", "1.en.txt", "1.zh.txt"):
        (tmp_path / name).write_bytes(name.encode() if name.endswith("txt") else IMAGE)
    with pytest.raises(CacheError, match=r"en\.txt.*--text-field NAME"):
        list(SourceContract.open(Made(tmp_path)).rows())
    source = SourceContract.open(Made(tmp_path, {"text_field": ("zh.txt",), "image_field": "jpg"}))
    assert [(row.key, row.captions) for row in source.rows()] == [("1.jpg", ["1.zh.txt"])]
    assert source.left_out == {"texts without an image (.txt)": 1, "images of other extensions (.png)": 2}


def test_a_split_of_sidecars_is_chosen(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "1.jpg").write_bytes(IMAGE)
        (tmp_path / split / "1.txt").write_text(split)
    with pytest.raises(CacheError, match=r"several splits .*--split"):
        list(SourceContract.open(Made(tmp_path)).rows())
    (row,) = SourceContract.open(Made(tmp_path, {"split": "val"})).rows()
    assert (row.key, row.captions) == ("val/1.jpg", ["val"])


def test_a_text_outside_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.jpg").write_bytes(IMAGE)
    (tmp_path / "in" / "1.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(CacheError, match=r"1\.txt"):
        list(SourceContract.open(Made(tmp_path / "in")).rows())


def test_class_folders_take_deeper_folders_and_any_image(tmp_path: Path) -> None:
    for name in ("owl/1.jpg", "owl/2.jfif", "owl/2020/may/3.JPEG", "owl/4", "crow/5.heic", "beside.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(IMAGE)
    for name in ("owl/notes.md", "owl/2020/index.md", "run/model.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    source = SourceContract.open(Made(tmp_path))
    assert source.kind == "class folders"
    assert [(row.key, row.captions) for row in source.rows()] == [
        ("crow/5.heic", ["crow"]),
        ("owl/1.jpg", ["owl"]),
        ("owl/2.jfif", ["owl"]),
        ("owl/4", ["owl"]),
        ("owl/2020/may/3.JPEG", ["owl"]),
    ]
    assert source.left_out == {"files that are no images (.md)": 2, "images beside the class folders": 1}


def test_a_search_for_sidecars_at_a_url_lists_few_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    store, listed = fsspec.filesystem("memory"), list[str]()

    def listing(folder: Location) -> list[Entry]:
        listed.append(str(folder))
        return entries(folder)

    monkeypatch.setattr(sidecars, "entries", listing)
    for i in range(60):
        store.pipe(f"/classes/{i:02}/deeper/1.jpg", IMAGE)
    store.pipe({"/few/train/0/1.jpg": IMAGE, "/few/train/0/1.txt": b"one"})
    try:
        assert not sidecars.holds_sidecars(to_location("memory://classes"))
        assert len(listed) == len(set(listed)) == 21
        assert sidecars.holds_sidecars(to_location("memory://few"))
    finally:
        store.store.clear()


def write_all(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(IMAGE)


def test_splits_beside_a_class_folder_are_not_mixed(tmp_path: Path) -> None:
    write_all(tmp_path, "samples/x.jpg", "train/cat/1.jpg", "val/cat/2.jpg")
    with pytest.raises(CacheError, match=r"train, val hold class folders.*samples.*--split NAME"):
        list(SourceContract.open(Made(tmp_path)).rows())
    (row,) = SourceContract.open(Made(tmp_path, {"split": "val"})).rows()
    assert (row.key, row.captions) == ("val/cat/2.jpg", ["cat"])


def test_a_class_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    write_all(tmp_path, "train/1.jpg", "train/steam/2.jpg", "car/3.jpg", "test/tube/4.jpg")
    (tmp_path / "test" / "5.jpg").write_bytes(IMAGE)
    rows = SourceContract.open(Made(tmp_path)).rows()
    assert [(row.key, row.captions) for row in rows] == [
        ("car/3.jpg", ["car"]),
        ("test/5.jpg", ["test"]),
        ("test/tube/4.jpg", ["test"]),
        ("train/1.jpg", ["train"]),
        ("train/steam/2.jpg", ["train"]),
    ]


def test_figures_deeper_in_other_folders_are_no_class(tmp_path: Path) -> None:
    write_all(tmp_path, "cat/1.jpg", "cat/2020/2.jpg", "docs/figures/a.png", "docs/figures/b/c.png", "dev/x/3.jpg")
    source = SourceContract.open(Made(tmp_path))
    assert [(row.key, row.captions) for row in source.rows()] == [("cat/1.jpg", ["cat"]), ("cat/2020/2.jpg", ["cat"])]
    assert source.left_out == {
        "images deeper in dev, which has none itself": 1,
        "images deeper in docs, which has none itself": 2,
    }


def test_dots_in_the_names_of_members(tmp_path: Path) -> None:
    stems = ("photo 2.0 (clean)", "v1.2-3")
    members = [member for stem in stems for member in ((f"{stem}.jpg", IMAGE), (f"{stem}.txt", stem.encode()))]
    planned = Planned.of(SourceContract.open(Made(write_tar(tmp_path / "dots.tar", members))))
    assert dict(zip(planned.keys, planned.captions, strict=True)) == {
        "dots.tar/photo 2.0 (clean)": ["photo 2.0 (clean)"],
        "dots.tar/v1.2-3": ["v1.2-3"],
    }
    assert planned.read(slice(None)) == [IMAGE, IMAGE]


extensions = st.from_regex(r"[a-z][a-z0-9]{0,4}", fullmatch=True)
parts = st.from_regex(r"[0-9 ()_-][a-z0-9 ()_-]{0,4}", fullmatch=True)


@given(first=st.from_regex(r"[a-z0-9 ]{1,5}", fullmatch=True), dotted=st.lists(parts, max_size=3), extension=extensions)
def test_a_name_is_split_before_its_extension(first: str, dotted: list[str], extension: str) -> None:
    key = ".".join([first, *dotted])
    assert split_name(f"{key}.{extension}") == (key, extension)
    assert split_name(f"{key}.seg.{extension}") == (key, f"seg.{extension}")


def test_signatures_are_those_that_pillow_writes() -> None:
    formats = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "JPEG2000", *(["AVIF"] if features.check("avif") else [])]
    for name in formats:
        Image.new("RGB", (32, 32)).save(file := BytesIO(), name)
        assert is_image_signature(file.getvalue()[:12]), name
    for text in (b"", b"BM is text", b"P5 is text", b"{}", b"\0" * 12, b"RIFF....WAVE"):
        assert not is_image_signature(text)


@pytest.mark.parametrize("name", ["images\\1.png", ".\\images\\1.png", "images/1.png"])
def test_back_slashes_are_resolved(name: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(IMAGE)
    (tmp_path / "secret.png").write_bytes(IMAGE)
    records = [{"image": name, "text": "a"}, {"image": "..\\secret.png", "text": "b"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    planned = Planned.of(SourceContract.open(Made(tmp_path / "pairs.jsonl")))
    assert planned.read(slice(None)) == [IMAGE, Status.OUTSIDE_ROOT]
