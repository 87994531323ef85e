"""Classes of a cache's images: class folders, captions, tables, and names from files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.read.cache import Cache
from clipglot.demo.run import ENGLISH_CLIP
from clipglot.evals.errors import EvalError
from clipglot.evals.labels import LabelledImages, labels_of, with_names
from clipglot.evals.prompts import ClassNames
from support.class_folders import CLASSES
from torchvision.datasets import ImageFolder


def names(given: dict[str, str] | list[str]) -> ClassNames:
    is_ordered = isinstance(given, list)
    items = enumerate(given) if isinstance(given, list) else given.items()
    return ClassNames(names={str(k): tuple(v.split("|")) for k, v in items}, is_ordered=is_ordered, origin="c.txt")


def babel_names(given: dict[str, str], num_places: int = 3) -> ClassNames:
    by_place = {place: (name,) for place, name in given.items()}
    return ClassNames(names=by_place, is_ordered=True, origin="babel.json", num_places=num_places)


def label_of_rows(images: LabelledImages) -> list[str]:
    return [images.labels[i] for i in images.classes]


def test_the_class_of_an_image_is_its_folder(class_cache: Path) -> None:
    cache = Cache(class_cache)
    images = labels_of(cache)
    assert images.labels == sorted(CLASSES)
    assert label_of_rows(images) == [key.split("/")[0].replace("_", " ") for key in cache.keys(0)]
    assert images.embeddings(cache) == pytest.approx(cache.image_emb().astype(np.float32))


def test_images_that_failed_have_no_class(make_cache: Callable[..., Any], class_folders: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(class_folders, tmp_path / "classes"))
    (folder / "red" / "00.png").write_bytes(b"no image")
    cache = make_cache(folder, tmp_path / "c.zarr").cache
    images = labels_of(cache)
    failed = cache.keys().index("red/00.png")
    assert failed not in images.rows
    assert len(images.rows) == len(cache) - 1
    assert images.embeddings(cache).shape[0] == len(images.rows)


def test_several_captions_are_no_classes(tiny_cache: Path) -> None:
    with pytest.raises(EvalError, match=r"image images/0001\.png \(row 1\) has several captions.*pass --labels FILE"):
        labels_of(Cache(tiny_cache))


def test_a_table_labels_some_images(tiny_cache: Path) -> None:
    cache = Cache(tiny_cache)
    images = labels_of(cache, [("images/0003.png", "b"), ("images/0001.png", "a"), ("elsewhere.png", "c")], "t.csv")
    assert (images.rows.tolist(), label_of_rows(images)) == ([1, 3], ["a", "b"])
    assert images.num_unlabelled == 38
    with pytest.raises(EvalError, match=r"t\.csv: k\.png has the labels 'a' and 'b': keep one"):
        labels_of(cache, [("k.png", "a"), ("k.png", "b")], "t.csv")
    with pytest.raises(EvalError, match=r"no key of t\.csv is one of an embedded image, such as 'images/0000"):
        labels_of(cache, [("0001.png", "a")], "t.csv")


def test_names_go_to_labels_by_label_by_order_or_by_being_them(class_cache: Path) -> None:
    images = labels_of(Cache(class_cache))
    by_label = with_names(images, names({"red": "красный", "blue": "синий|голубой", "green": "зелёный"}))
    assert by_label.shown == ["синий", "зелёный", "красный"]
    assert label_of_rows(by_label) == label_of_rows(images)
    by_order = with_names(images, names(["синий", "зелёный", "красный"]))
    assert dict(zip(by_order.labels, by_order.shown, strict=True)) == {
        "blue": "синий",
        "green": "зелёный",
        "red": "красный",
    }
    themselves = with_names(images, names(["red", "green", "blue"]))  # in another order than the labels
    assert dict(zip(themselves.labels, themselves.shown, strict=True)) == {n: n for n in ("blue", "green", "red")}


def test_a_language_that_lacks_classes_leaves_their_images_out(class_cache: Path) -> None:
    images = labels_of(Cache(class_cache))
    babel = babel_names({"0": "синий", "2": "красный"})
    named = with_names(images, babel)
    assert named.labels == ["blue", "red"]
    kept = [row for row, label in zip(images.rows, label_of_rows(images), strict=True) if label != "green"]
    assert named.rows.tolist() == kept
    assert named.num_unlabelled == len(images.rows) - len(kept)


def test_indices_go_to_labels_that_are_numbers(class_cache: Path) -> None:
    images = replace(labels_of(Cache(class_cache)), labels=["1", "10", "2"])
    named = with_names(images, babel_names({"2": "два", "10": "десять", "11": "одиннадцать"}, 12))
    assert dict(zip(named.labels, named.shown, strict=True)) == {"2": "два", "10": "десять"}
    with pytest.raises(EvalError, match="no name for any class"):
        with_names(images, babel_names({"3": "три"}, 12))
    with pytest.raises(EvalError, match=r"from 0 to 9, and '10' is a label of the images: number them from 0"):
        with_names(images, babel_names({"2": "два"}, 10))


def test_indices_whose_places_are_not_known_are_refused(class_cache: Path) -> None:
    images = labels_of(Cache(class_cache))
    with pytest.raises(EvalError, match="indices of 4 classes, the images have 3, so the places"):
        with_names(images, babel_names({"0": "a", "2": "b"}, 4))  # all images of a class may have failed
    words, synsets = ([f"{word}{i:08}" for i in range(1000)] for word in ("tench", "n"))
    every = replace(images, labels=words, classes=np.zeros_like(images.classes))
    with pytest.raises(EvalError, match="in the order of n01440764"):
        with_names(every, babel_names({"0": "линь"}, 1000))
    assert with_names(replace(every, labels=synsets), babel_names({"0": "линь"}, 1000)).shown == ["линь"]


def test_names_in_order_of_numbers_are_refused_where_text_sorts_otherwise(class_cache: Path) -> None:
    images = labels_of(Cache(class_cache))
    with pytest.raises(EvalError, match=r"the labels are numbers, which sort as text otherwise \('1', '10', '2'"):
        with_names(replace(images, labels=["1", "10", "2"]), names(["eins", "zwei", "zehn"]))
    assert with_names(replace(images, labels=["1", "2", "3"]), names(["eins", "zwei", "drei"])).shown[2] == "drei"


def test_names_in_order_go_to_folders_as_torchvision_sorts_them(
    make_cache: Callable[..., Any], class_folders: Path, tmp_path: Path
) -> None:
    folders = ["a-c", "a_b", "a b c"]
    for name, original in zip(folders, sorted(CLASSES), strict=True):
        shutil.copytree(class_folders / original, tmp_path / "classes" / name)
    cache = make_cache(tmp_path / "classes", tmp_path / "c.zarr").cache
    images = labels_of(cache)
    order = [entry.replace("_", " ") for entry in ImageFolder(str(tmp_path / "classes")).classes]
    assert images.labels == order
    named = with_names(images, names(["eins", "zwei", "drei"]))
    assert dict(zip(named.labels, named.shown, strict=True)) == dict(zip(order, ["eins", "zwei", "drei"], strict=True))


def test_labels_may_be_written_as_the_folders_are(class_cache: Path) -> None:
    images = replace(labels_of(Cache(class_cache)), labels=["dark blue", "green", "red"])
    named = with_names(images, names({"red": "c", "green": "b", "dark_blue": "a"}))
    assert named.shown == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["red", "Green", "blue"], r"c\.txt names 'red' in the place of class 'blue', and not all labels"),
        (["Red", "Green", "Blue"], r"c\.txt names 'Red' in the place of class 'blue'"),
        (["rot|Red", "grün", "blau"], r"c\.txt names 'Red' in the place of class 'blue'"),
        (["a", "b"], r"c\.txt has 2 classes, the images have 3: write a line for each"),
        (["a", "b", "c", "d"], r"c\.txt has 4 classes, the images have 3"),
        ({"red": "a", "blue": "b"}, r"has no names for 'green', which the images have: add them"),
        (
            {"red": "a", "blue": "b", "green": "c", "grey": "d"},
            r"no image has class 'grey': delete them, or pass --dis",
        ),
    ],
)
def test_a_file_that_does_not_fit_the_images(
    given: dict[str, str] | list[str], message: str, class_cache: Path
) -> None:
    with pytest.raises(EvalError, match=message):
        with_names(labels_of(Cache(class_cache)), names(given))


def test_two_ways_to_write_a_label_are_refused(class_cache: Path) -> None:
    images = replace(labels_of(Cache(class_cache)), labels=["dark blue", "green", "red"])
    with pytest.raises(EvalError, match=r"'dark blue' and an earlier label are one class"):
        with_names(images, names({"red": "c", "green": "b", "dark_blue": "a", "dark blue": "d"}))


def test_distractors_are_further_choices(class_cache: Path) -> None:
    images = labels_of(Cache(class_cache))
    given = names({"red": "a", "blue": "b", "green": "c", "azure": "d"})
    named = with_names(images, given, distractors=True)
    assert named.labels == ["blue", "green", "red", "azure"]
    assert label_of_rows(named) == label_of_rows(images)


def test_a_cache_without_images_has_no_classes(
    make_cache: Callable[..., Any], translated_manifests: dict[str, Path], tmp_path: Path
) -> None:
    given = {"model": f"local-dir:{ENGLISH_CLIP}", "teacher_field": ("en",)}
    cache = make_cache(translated_manifests["val"], tmp_path / "c.zarr", **given, images=False, limit=20).cache
    with pytest.raises(EvalError, match=r"has no images, but translations \(--no-images\)"):
        labels_of(cache)


def test_a_label_without_captions_is_refused(make_cache: Callable[..., Any], manifest: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) | {"text": []} for line in manifest.read_text().splitlines()[:2]]
    table = manifest.parent / "textless.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cache = make_cache(table, tmp_path / "c.zarr").cache
    with pytest.raises(EvalError, match="no embedded image has a caption"):
        labels_of(cache)
