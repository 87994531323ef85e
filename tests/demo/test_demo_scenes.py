"""Scenes of the demo: sampling, drawing and held-out pairs, and the demo's English CLIP."""

import json
import socket
from collections import Counter
from pathlib import Path

import clipglot.demo
import numpy as np
import open_clip
import pytest
import torch
from clipglot.demo.captions import class_prompt
from clipglot.demo.scenes import (
    COLOURS,
    HELD_OUT,
    PAIRS,
    SHAPES,
    TRAINED,
    Group,
    Scene,
    classification_scenes,
    draw,
    held_out_scenes,
    training_scenes,
)

ENGLISH_CLIP = Path(clipglot.demo.__file__).parent / "english_clip"


def pixels(scene: Scene, size: int = 64) -> np.ndarray:
    return np.asarray(draw(scene, size)).astype(int)


def test_scenes_depend_on_the_seed_alone() -> None:
    assert training_scenes(50, seed=1) == training_scenes(50, seed=1)
    assert training_scenes(50, seed=1) != training_scenes(50, seed=2)
    assert training_scenes(50, seed=1) == training_scenes(80, seed=1)[:50]
    assert held_out_scenes(50, seed=1) == held_out_scenes(50, seed=1)
    assert classification_scenes(2, seed=1) == classification_scenes(2, seed=1)
    first, second = training_scenes(2, seed=1)
    assert (pixels(first) == pixels(first)).all()
    assert (pixels(first) != pixels(second)).any()


def test_held_out_pairs_are_evenly_spread_and_in_no_training_scene() -> None:
    assert len(PAIRS) == 64
    assert len(HELD_OUT) == 16
    assert sorted(HELD_OUT + TRAINED) == sorted(PAIRS)
    assert set(Counter(colour for colour, _ in HELD_OUT).values()) == {2}
    assert set(Counter(shape for _, shape in HELD_OUT).values()) == {2}
    seen = frozenset().union(*(scene.pairs for scene in training_scenes(5_000, seed=0)))
    assert seen == set(TRAINED)


def test_held_out_scenes_are_distinct_and_contain_a_held_out_pair() -> None:
    scenes = held_out_scenes(1_000, seed=0)
    assert all(scene.pairs & set(HELD_OUT) for scene in scenes)
    assert len({scene.content for scene in scenes}) == 1_000


def test_classification_scenes_show_one_object_of_the_labelled_class() -> None:
    scenes, labels = classification_scenes(3, seed=0)
    assert Counter(labels) == dict.fromkeys(range(64), 3)
    assert all(scene.pairs == {PAIRS[label]} for scene, label in zip(scenes, labels, strict=True))
    assert all(len(scene.groups) == 1 and scene.groups[0].count == 1 for scene in scenes)
    hard, hard_labels = classification_scenes(2, seed=0, pairs=HELD_OUT)
    assert [PAIRS[label] for label in hard_labels] == [scene.groups[0].pair for scene in hard]


@pytest.mark.parametrize("size", [32, 64, 224])
def test_images_are_rgb_of_the_given_size(size: int) -> None:
    image = draw(training_scenes(1, seed=0)[0], size)
    assert image.mode == "RGB"
    assert image.size == (size, size)


def test_jitter_alone_changes_the_image() -> None:
    circle = Group(colour="red", shape="circle", size="large")
    one, other = (Scene(groups=(circle,), layout="centre", background="white", jitter=j) for j in (1, 2))
    assert one.content == other.content
    assert (pixels(one) != pixels(other)).any()


@pytest.mark.parametrize(("layout", "axis", "before"), [("left", 1, True), ("right", 1, False), ("top", 0, True)])
def test_objects_are_where_the_layout_says(layout: str, axis: int, before: bool) -> None:
    square = Group(colour="blue", shape="square", size="small")
    for jitter in range(20):
        scene = Scene(groups=(square,), layout=layout, background="white", jitter=jitter)  # type: ignore[arg-type]
        blue = pixels(scene)[:, :, 0] < 120  # little red is left where the square is
        assert (np.argwhere(blue)[:, axis].mean() < 32) is np.bool(before)


@pytest.mark.parametrize("shape", SHAPES)
def test_large_is_larger_than_small(shape: str) -> None:
    def area(size: str, jitter: int) -> int:
        group = Group(colour="red", shape=shape, size=size)  # type: ignore[arg-type]
        scene = Scene(groups=(group,), layout="centre", background="white", jitter=jitter)
        return int((pixels(scene)[:, :, 1] < 140).sum())  # little green is left where the shape is

    assert max(area("small", j) for j in range(20)) < min(area("large", j) for j in range(20))


def test_shapes_and_colours_look_different() -> None:
    def image(colour: str, shape: str) -> np.ndarray:
        group = Group(colour=colour, shape=shape, size="large")  # type: ignore[arg-type]
        return pixels(Scene(groups=(group,), layout="centre", background="grey", jitter=4))

    drawn = [image("red", shape) for shape in SHAPES] + [image(colour, "ring") for colour in COLOURS]
    distinct = {array.tobytes() for array in drawn}
    assert len(distinct) == len(SHAPES) + len(COLOURS) - 1  # the red ring is drawn twice


def test_invalid_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 5"):
        Group(colour="red", shape="ring", count=6)
    with pytest.raises(ValueError, match="has a size"):
        Group(colour="red", shape="ring", count=1)
    with pytest.raises(ValueError, match="several have none"):
        Group(colour="red", shape="ring", count=2, size="small")


@pytest.fixture(scope="module")
def loaded() -> tuple:
    """The shipped CLIP, loaded by plain open_clip without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", None)
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{ENGLISH_CLIP}")
        return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{ENGLISH_CLIP}")


def accuracy(loaded: tuple, language: str) -> float:
    model, preprocess, tokenizer = loaded
    scenes, labels = classification_scenes(4, seed=7, pairs=HELD_OUT)
    prompts = tokenizer([class_prompt(colour, shape, language) for colour, shape in PAIRS])  # type: ignore[arg-type]
    with torch.no_grad():
        image_emb = model.encode_image(torch.stack([preprocess(draw(scene)) for scene in scenes]), normalize=True)
        text_emb = model.encode_text(prompts, normalize=True)
    found = (image_emb @ text_emb.T).argmax(1)
    return (found == torch.tensor(labels)).float().mean().item()


def test_the_english_clip_classifies_held_out_pairs(loaded: tuple) -> None:
    assert accuracy(loaded, "en") >= 0.85


def test_the_english_clip_does_not_understand_russian(loaded: tuple) -> None:
    assert accuracy(loaded, "ru") <= 0.1


def test_the_tokenizer_adds_bos_and_eos_and_encodes_any_text(loaded: tuple) -> None:
    _, _, tokenizer = loaded
    ids = tokenizer(["a red circle", "большой красный круг слева от маленькой синей звезды", ""])
    assert ids.shape == (3, tokenizer.context_length)
    assert (ids[0] != 0).sum() == 5
    assert (ids[:, 0] == 1).all()
    assert ((ids == 2).sum(1) == 1).all()


def test_the_english_clip_is_small_and_in_float16() -> None:
    assert sum(file.stat().st_size for file in ENGLISH_CLIP.iterdir()) < 7e6
    with (ENGLISH_CLIP / "open_clip_model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} == {"F16"}
