"""Class folders, COCO's captions and MUGE's folders keep the contract of sources; and what is particular to them."""

import base64
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.format import Status
from clipglot.cache.sources.muge import Places
from clipglot.cache.sources.source import SourceRow
from support.source_contract import CAPTIONS, Made, Planned, SourceContract, encoded_images, write_images

Captions = Sequence[Sequence[str]]


class TestClassFolders(SourceContract):
    """One caption an image, and what a file system takes for a name."""

    captions: ClassVar[Captions] = sorted(
        [text] for text in ("a tabby cat", "кот", "猫", "고양이", "e\u0301", "é", "🐈‍⬛", "zz")
    )
    hostile: ClassVar[dict[str, str]] = {"empty": "_"}

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        shutil.rmtree(folder / "pictures", ignore_errors=True)
        (folder / "pictures").mkdir()
        for (caption,), image in zip(captions, images, strict=True):
            write_images(folder / "pictures" / caption.replace(" ", "_"), [image])
        return Made(folder / "pictures")


class TestClassFoldersOfASplit(TestClassFolders):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        made = super().make(folder, images, captions).path
        shutil.rmtree(folder / "splits", ignore_errors=True)
        made.rename(made.parent / "train")
        (folder / "splits").mkdir()
        (made.parent / "train").rename(folder / "splits" / "train")
        write_images(folder / "splits" / "val" / "dog", images[:1])
        return Made(folder / "splits", {"split": "train"})


class TestCoco(SourceContract):
    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        names = write_images(folder / "train2017", images)
        images = [{"id": 100 - i, "file_name": name, "height": 40} for i, name in enumerate(names)]
        annotations = [
            {"image_id": 100 - i, "id": i, "caption": text} for i, texts in enumerate(captions) for text in texts
        ]
        (folder / "annotations").mkdir(exist_ok=True)
        path = folder / "annotations" / "captions_train2017.json"
        path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
        return Made(path, {"image_root": folder / "train2017"})


class TestMuge(SourceContract):
    """Images of no text come last."""

    captions: ClassVar[Captions] = sorted(CAPTIONS, key=lambda texts: not texts)

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        lines = [f"{1000 + i}\t{base64.urlsafe_b64encode(p).decode()}\n" for i, p in enumerate(images)]
        (folder / "train_imgs.tsv").write_text("".join(lines))
        texts = [
            {"text_id": i, "text": text, "image_ids": [1000 + i]} for i, texts in enumerate(captions) for text in texts
        ]
        (folder / "train_texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
        return Made(folder)


class TestMugeOfASplit(TestMuge):
    """With a list of texts for an image, other line ends and the other alphabet."""

    def make(self, folder: Path, images: Sequence[bytes], captions: Captions) -> Made:
        made = super().make(folder, images, captions).path
        for name in ("train_imgs.tsv", "train_texts.jsonl"):
            shutil.copy(made / name, made / name.replace("train", "valid"))
        lines = [f"{1000 + i}\t{base64.b64encode(p).decode()}\r\n" for i, p in enumerate(images)]
        (folder / "train_imgs.tsv").write_text("".join(lines), newline="")
        texts = [{"image_id": f"{1000 + i}", "text": list(texts)} for i, texts in enumerate(captions) if texts]
        (folder / "train_texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
        return Made(folder, {"split": "train"})


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
    ("pictures", "text", "message"),
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
    found = muge(tmp_path, b"1\tAAAA\n2\tAAAA\n", {"text": "a", "image_ids": [1, "1", 2]})
    assert (found.keys, found.captions) == (["1", "2"], [["a"], ["a"]])


def test_every_line_of_a_tsv_is_found(tmp_path: Path) -> None:
    """As a plain reading of the file finds them."""
    lines = [f"id{i}\t{'A' * (i * 37 % 5000)}".encode() for i in range(3000)]
    for end, path in ((b"\n", tmp_path / "a"), (b"\r\n", tmp_path / "b")):
        path.write_bytes(end.join(lines))
        places, content = Places.scanned(path, "lines"), path.read_bytes()
        assert list(places) == [f"id{i}" for i in range(3000)]
        for line, key in zip(lines, places, strict=True):
            _, start, size = places.locator(key)
            assert content[start : start + size] == line.partition(b"\t")[2]


def test_a_split_must_be_chosen_and_be_there(tmp_path: Path) -> None:
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
def test_class_folders_beside_captions_are_refused_because_these_would_be_lost(name: str, tmp_path: Path) -> None:
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


def test_class_folders_are_sorted_and_hold_images_alone(tmp_path: Path) -> None:
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
    with open(os.fsencode(tmp_path / "b") + b"/\xff.png", "wb"), pytest.raises(CacheError, match="is no UTF-8: rename"):
        list(source.rows())


@pytest.mark.parametrize("link", ["fox", "train/fox", "train"])
def test_class_folders_outside_the_root_are_not_looked_into(link: str, tmp_path: Path) -> None:
    write_images(tmp_path / "outside" / "fox", encoded_images(1))
    write_images(tmp_path / "in" / Path(link).parent / "cat", encoded_images(1))
    (tmp_path / "in" / link).symlink_to(tmp_path / "outside" / ("" if link == "train" else "fox"))
    with pytest.raises(CacheError, match=rf"^{tmp_path}/in/{link} leads to {tmp_path}/outside.*: pass --image-root"):
        list(SourceContract.open(Made(tmp_path / "in")).rows())
    source = SourceContract.open(Made(tmp_path / "in", {"image_root": tmp_path}))
    assert any("cat" in row.key for row in source.rows())


def test_what_else_lies_beside_splits_is_none(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
    write_images(tmp_path / "train" / "fox", encoded_images(3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    for resumed in (False, True):  # into the very folder that it reads
        made = make_cache(tmp_path, tmp_path / "out.zarr")
        assert (made.resumed, made.cache.keys(0)[0][:10], len(made.cache)) == (resumed, "train/fox/", 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", r"expected lists 'images' and 'annotations' as in COCO, found list"),
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
def test_what_is_not_cocos_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(CacheError, match=message) as error:
        list(SourceContract.open(Made(path)).rows())
    assert str(error.value).startswith(str(path))


def test_what_is_no_source_is_told_what_there_is(tmp_path: Path, make_cache: Callable[..., Any]) -> None:
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
