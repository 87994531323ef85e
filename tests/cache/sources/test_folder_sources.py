"""Class folders, COCO and MUGE: the contract of sources, and their own rules."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.sources.muge import ImageIndex
from clipglot.cache.sources.source import SourceRow
from support import source_makers as makers
from support.source_contract import Made, Planned, SourceContract, encoded_images, write_images


class TestClassFolders(makers.ClassFolders):
    pass


class TestClassFoldersOfASplit(makers.ClassFoldersOfASplit):
    pass


class TestCoco(makers.Coco):
    pass


class TestMuge(makers.Muge):
    pass


class TestMugeOfASplit(makers.MugeOfASplit):
    pass


def muge(folder: Path, images: bytes, *texts: dict[str, Any]) -> Planned:
    folder.mkdir(exist_ok=True)
    (folder / "valid_imgs.tsv").write_bytes(images)
    (folder / "valid_texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return Planned.of(SourceContract.open(Made(folder)))


def test_a_text_of_several_images_one_of_none_and_one_of_a_missing_image(tmp_path: Path) -> None:
    planned = muge(
        tmp_path,
        b"7\tAAAA\n\n8\tAAA\n9\tA*AA\n7\tBBBB",
        {"text": "a", "image_ids": [8, 7]},
        {"text": "b", "image_ids": []},
        {"text": "c", "image_ids": [7, 1]},
    )
    assert planned.keys == ["8", "7", "1", "9"]
    assert planned.captions == [["a"], ["a", "c"], ["c"], []]
    assert planned.read(slice(None)) == [Status.DAMAGED, b"\0\0\0", Status.MISSING, Status.DAMAGED]


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (b"7\tAAAA\nno tab\n", {"text": "a", "image_ids": [7]}, r"valid_imgs\.tsv:2: expected an id, a tab and base64"),
        (b"\tAAAA\n", {"text": "a", "image_ids": [7]}, r"valid_imgs\.tsv:1: expected an id"),
        (b"\xff\tAAAA\n", {"text": "a", "image_ids": [7]}, r"valid_imgs\.tsv:1: expected an id"),
        (b"x" * 10_000 + b"\tAAAA\n", {"text": "a", "image_ids": [7]}, r"valid_imgs\.tsv:1: expected an id"),
        (b"7\tAAAA\n", {"text": "a"}, r"valid_texts\.jsonl:1: no field 'image_ids' or 'image_id' \(found: text\)"),
        (b"7\tAAAA\n", {"text": "a", "image_ids": [[7]]}, r"'image_ids' must be the id of an image, or a list"),
        (b"7\tAAAA\n", {"text": "a", "image_ids": [7, ""]}, r"'image_ids' must be the id of an image, or a list"),
        (b"7\tAAAA\n", {"image_ids": [7]}, r"valid_texts\.jsonl:1: no field 'text' .*: pass --text-field"),
    ],
)
def test_a_damaged_line_is_named(images: bytes, text: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=message):
        muge(tmp_path, images, text)


def test_a_condition_leaves_out_images_without_text(tmp_path: Path) -> None:
    muge(tmp_path / "m", b"7\tAAAA\n8\tAAAA\n9\tAAAA\n", *({"text": "a", "image_id": 6 + n, "n": n} for n in (1, 2)))
    images = [{"id": i, "file_name": str(i)} for i in (7, 8, 9)]
    annotations = [{"image_id": 6 + n, "caption": "a", "n": n} for n in (1, 2)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    for path in (tmp_path / "m", tmp_path / "coco.json"):
        assert [row.key for row in SourceContract.open(Made(path)).rows()] == ["7", "8", "9"]
        source = SourceContract.open(Made(path, {"where": "n > 1"}))
        assert [row.key for row in source.rows()] == ["8"]
        assert source.left_out == {"--where": 2}


def test_a_text_that_names_an_image_twice_is_its_caption_once(tmp_path: Path) -> None:
    planned = muge(tmp_path, b"1\tAAAA\n2\tAAAA\n", {"text": "a", "image_ids": [1, "1", 2]})
    assert (planned.keys, planned.captions) == (["1", "2"], [["a"], ["a"]])


def test_every_line_of_a_tsv_is_indexed(tmp_path: Path) -> None:
    """As a plain reading of the file finds them."""
    lines = [f"id{i}\t{'A' * (i * 37 % 5000)}".encode() for i in range(3000)]
    for end, path in ((b"\n", tmp_path / "a"), (b"\r\n", tmp_path / "b")):
        path.write_bytes(end.join(lines))
        index, content = ImageIndex.scan(path, "lines"), path.read_bytes()
        assert list(index) == [f"id{i}" for i in range(3000)]
        for line, key in zip(lines, index, strict=True):
            _, start, size = index.locator(key)
            assert content[start : start + size] == line.partition(b"\t")[2]


def test_a_split_must_be_chosen_and_exist(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        muge(tmp_path / split, b"7\tAAAA\n", {"text": "a", "image_ids": [7]})
        for name in ("imgs.tsv", "texts.jsonl"):
            (tmp_path / split / f"valid_{name}").rename(tmp_path / f"{split}_{name}")
        write_images(tmp_path / "classes" / split / "cat", encoded_images(1))
    for folder in (tmp_path, tmp_path / "classes"):
        with pytest.raises(CacheError, match=r"has several splits \(train, valid\): pass --split NAME"):
            list(SourceContract.open(Made(folder)).rows())
        with pytest.raises(CacheError, match=r"no split 'test' in it \(found: train, valid\): pass --split NAME"):
            list(SourceContract.open(Made(folder, {"split": "test"})).rows())
    (tmp_path / "valid_texts.jsonl").unlink()
    with pytest.raises(CacheError, match=r"valid_texts\.jsonl: no such file: images and texts"):
        list(SourceContract.open(Made(tmp_path, {"split": "valid"})).rows())


@pytest.mark.parametrize(
    "name", ["metadata.jsonl", "pairs.CSV", "train/table.tsv", "train/cat/1.txt", "train/dog/2.caption"]
)
def test_class_folders_beside_captions_are_refused(name: str, tmp_path: Path) -> None:
    for image in ("train/cat/1.jpg", "train/dog/2.png"):
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / image).touch()
    for harmless in ("train/cat/3.txt", "README.txt", ".hidden.csv"):
        (tmp_path / harmless).touch()
    source = SourceContract.open(Made(tmp_path, {"split": "train"}))
    assert len(list(source.rows())) == 2
    (tmp_path / name).touch()
    with pytest.raises(CacheError, match=re.escape(name)):
        list(source.rows())


def test_class_folders_are_sorted_and_other_files_ignored(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "b/notes.txt", "b/.hidden.png", "a_c/3.webp", ".git/4.png", "loose.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "folder.png").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    source = SourceContract.open(Made(tmp_path))
    assert list(source.rows()) == [
        SourceRow(1, "a_c/3.webp", ["a c"], [], []),
        SourceRow(2, "b/1.png", ["b"], [], []),
        SourceRow(3, "b/2.JPG", ["b"], [], []),
    ]
    with pytest.raises(CacheError, match=r"no split 'a_c' in it \(found: none\)"):
        list(SourceContract.open(Made(tmp_path, {"split": "a_c"})).rows())
    with (
        open(os.fsencode(tmp_path / "b") + b"/\xff.png", "wb"),
        pytest.raises(CacheError, match="is not UTF-8: rename"),
    ):
        list(source.rows())


@pytest.mark.parametrize("link", ["fox", "train/fox", "train"])
def test_class_folders_outside_the_root_are_refused(link: str, tmp_path: Path) -> None:
    write_images(tmp_path / "outside" / "fox", encoded_images(1))
    write_images(tmp_path / "in" / Path(link).parent / "cat", encoded_images(1))
    (tmp_path / "in" / link).symlink_to(tmp_path / "outside" / ("" if link == "train" else "fox"))
    with pytest.raises(CacheError, match=rf"^{tmp_path}/in/{link} leads to {tmp_path}/outside.*: pass --image-root"):
        list(SourceContract.open(Made(tmp_path / "in")).rows())
    source = SourceContract.open(Made(tmp_path / "in", {"image_root": tmp_path}))
    assert any("cat" in row.key for row in source.rows())


def test_other_folders_beside_splits_are_not_splits(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
    write_images(tmp_path / "train" / "fox", encoded_images(3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    for resumed in (False, True):  # into the very folder that it reads
        made = make_cache(tmp_path, tmp_path / "out.zarr")
        assert (made.resumed, made.cache.keys(0)[0][:10], len(made.cache)) == (resumed, "train/fox/", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", r"expected lists 'images' and 'annotations' as in COCO, found list"),
        ('{"images": [], "info": 1}', r"expected lists .*, found images, info"),
        ("{", r"not readable as JSON in UTF-8 .*: export or fetch it again"),
        ('{"image": "a.jpg"}\n{"image": "b.jpg"}', r"not readable as JSON .*: it looks like a record a line: name it"),
        ("[" * 100_000, r"not readable as JSON in UTF-8"),
        ('{"images": [1], "annotations": []}', r"images\[0\]: expected a JSON object, found int"),
        ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\]: no field 'file_name' .*pass --image-field NAME"),
        ('{"images": [{"id": 1, "file_name": 2}], "annotations": []}', r"images\[0\]: 'file_name' must be a path"),
        (
            '{"images": [{"id": 1, "file_name": "\\ud800"}], "annotations": []}',
            r"images\[0\]: 'file_name' must be a path, found '\\ud800'",
        ),
        ('{"images": [{"file_name": "a"}], "annotations": []}', r"images\[0\]: no field 'id' \(found: file_name\)"),
        (
            '{"images": [{"id": 7, "file_name": "a"}, {"id": 7, "file_name": "b"}], "annotations": []}',
            r"images\[1\] has the id 7 of images\[0\]: give each its own, or leave one out",
        ),
        ('{"images": [], "annotations": [{"image_id": 1}]}', r"annotations\[0\] is of an image that is not among"),
        ('{"images": [], "annotations": [{"image_id": []}]}', r"annotations\[0\]: 'image_id' must be a number or"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}',
            r"annotations\[0\]: no field 'caption' \(found: image_id, bbox\): pass --text-field NAME",
        ),
    ],
)
def test_a_file_without_cocos_form_is_refused_by_place(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(CacheError, match=message) as error:
        list(SourceContract.open(Made(path)).rows())
    assert str(error.value).startswith(str(path))


def test_an_unknown_source_is_described(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheError, match=r"is a folder of 1 folders, 1 \.txt, no known source\. Known are: .* COCO"):
        make_cache(tmp_path, tmp_path / "cache.zarr")
    with pytest.raises(CacheError, match=r"is a folder of nothing, no known source"):
        make_cache(tmp_path / "empty", tmp_path / "cache.zarr")
    with pytest.raises(CacheError, match=r"notes\.txt is a file \.txt, no .* \.jsonl.*_imgs\.tsv.*\.parquet"):
        make_cache(tmp_path / "notes.txt", tmp_path / "cache.zarr")
    with pytest.raises(CacheError, match=r"absent: no such file or folder"):
        make_cache(tmp_path / "absent", tmp_path / "cache.zarr")
