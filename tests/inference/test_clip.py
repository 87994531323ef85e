"""A loaded CLIP gives open_clip's embeddings for texts and images of any form, and says which input is bad."""

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import clipglot
import numpy as np
import open_clip
import pytest
import torch
from clipglot.encoders.errors import EncoderError
from clipglot.inference.errors import InputError
from huggingface_hub import constants
from PIL import Image
from support.odd_strings import odd_strings
from support.tiny_clip import TINY_CONFIG, save_tiny_clip

CAPTIONS = ["a red circle", "", "два круга на столе", "一只猫", "고양이 둘", "a <eos> b", "word " * 300]


@pytest.fixture(scope="module")
def by_open_clip(merged: Path) -> tuple[Any, Any, Any]:
    """Model, preprocessing and tokenizer as open_clip loads them."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{merged}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{merged}")


@pytest.fixture(scope="module")
def images(manifest: Path) -> list[Path]:
    """Some image files."""
    return sorted((manifest.parent / "images").glob("*.png"))[:5]


def unit(tensor: Any) -> np.ndarray[Any, Any]:
    return (tensor / tensor.norm(dim=-1, keepdim=True)).detach().numpy()


def test_texts_are_those_of_open_clip_in_the_order_given(clip: clipglot.CLIP, by_open_clip: Any) -> None:
    model, _, tokenizer = by_open_clip
    texts = [*CAPTIONS, *odd_strings(50, seed=1)]
    expected = unit(model.encode_text(tokenizer(texts)))
    np.testing.assert_allclose(clip.encode_text(texts), expected, atol=2e-6)
    np.testing.assert_allclose(clip.encode_text(texts, batch_size=3), expected, atol=2e-6)
    raw = clip.encode_text(texts, normalize=False)
    np.testing.assert_allclose(raw, model.encode_text(tokenizer(texts)).detach().numpy(), atol=1e-5)


def test_images_of_every_form_are_those_of_open_clip(
    clip: clipglot.CLIP, by_open_clip: Any, images: list[Path]
) -> None:
    model, preprocess, _ = by_open_clip
    opened = [Image.open(image) for image in images]
    expected = unit(model.encode_image(torch.stack([preprocess(image) for image in opened])))
    forms = [images, [str(image) for image in images], opened]
    forms += [[image.read_bytes() for image in images], [np.asarray(image.convert("RGB")) for image in opened]]
    for form in forms:
        np.testing.assert_allclose(clip.encode_image(form, batch_size=2), expected, atol=2e-6)
    assert torch.equal(clip.preprocess(opened[0]), preprocess(opened[0]))


def test_a_single_input_gives_a_single_row_and_tensors_on_request(clip: clipglot.CLIP, images: list[Path]) -> None:
    assert clip.encode_text("one").shape == clip.encode_image(images[0]).shape == (clip.dim,)
    assert clip.encode_text([]).shape == clip.encode_image([]).shape == (0, clip.dim)
    tensor = clip.encode_text(["one"], convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.shape == (1, clip.dim)
    mixed = clip.encode(["a text", images[0], "another"])
    np.testing.assert_allclose(mixed[1], clip.encode_image(images[0]), atol=1e-6)
    np.testing.assert_allclose(mixed[[0, 2]], clip.encode(["a text", "another"]), atol=1e-6)
    assert not clip.model.image_tower.visual.training
    assert clip.model.text_tower is not None
    assert not clip.model.text_tower.training


def test_a_bad_image_is_named_and_can_be_skipped(clip: clipglot.CLIP, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    given = [images[0], tmp_path / "broken.png", images[1], tmp_path / "absent.png"]
    with pytest.raises(InputError, match=r"image 1: .*broken\.png: "):
        clip.encode_image(given)
    with pytest.warns(UserWarning, match=r"image [13]: ") as warned:
        emb = clip.encode_image(given, skip_errors=True)
    assert len(warned) == 2
    assert "no such file" in str(warned[1].message)
    assert np.isnan(emb).all(axis=1).tolist() == [False, True, False, True]
    np.testing.assert_array_equal(emb[[0, 2]], clip.encode_image([images[0], images[1]]))
    buffer = io.BytesIO()
    Image.new("RGB", (50, 50)).save(buffer, "JPEG")
    for odd in (buffer.getvalue()[:200], 3, np.zeros((4, 4, 3), np.float64), Image.new("RGB", (0, 5)), None):
        with pytest.raises(InputError, match="image 0: "):
            clip.encode_image([odd])


def test_odd_texts_are_embedded_or_refused(clip: clipglot.CLIP) -> None:
    assert np.isfinite(clip.encode_text("ab " * 50_000)).all()
    for odd in ([1], [None], [b"bytes"]):
        with pytest.raises(InputError, match="text 0 is of type"):
            clip.encode_text(odd)  # type: ignore[arg-type]


def test_similarity_takes_inputs_and_embeddings(clip: clipglot.CLIP, images: list[Path]) -> None:
    texts = ["a", "b b", "c c c"]
    cosines = clip.similarity(images, texts)
    assert cosines.shape == (len(images), 3)
    np.testing.assert_allclose(cosines, clip.encode_image(images) @ clip.encode_text(texts).T, atol=1e-6)
    np.testing.assert_allclose(clip.similarity(clip.encode_image(images) * 3, texts), cosines, atol=1e-6)
    with pytest.raises(InputError, match=r"expected \[n, 16\]"):
        clip.similarity(np.zeros((2, 3), np.float32), texts)


def test_classification_is_that_of_open_clip(clip: clipglot.CLIP, by_open_clip: Any, images: list[Path]) -> None:
    model, preprocess, tokenizer = by_open_clip
    labels, templates = ["circle", "square", "star"], ["a {}", "one {} on white"]
    of_templates = unit(model.encode_text(tokenizer([t.format(label) for label in labels for t in templates])))
    of_labels = of_templates.reshape(3, 2, -1).mean(1)
    of_labels /= np.linalg.norm(of_labels, axis=1, keepdims=True)
    pixels = torch.stack([preprocess(Image.open(image)) for image in images])
    logits = model.logit_scale.exp().item() * unit(model.encode_image(pixels)) @ of_labels.T
    expected = torch.from_numpy(logits).softmax(1).numpy()
    for i, found in enumerate(clip.classify(images, labels, templates=templates)):
        order = np.argsort(-expected[i])
        assert found.labels == [labels[j] for j in order]
        np.testing.assert_allclose(found.probabilities, expected[i][order], atol=1e-5)
    one = clip.classify(images[0], ["<b>x</b>", "y"])
    assert "&lt;b&gt;" in one._repr_html_()
    with pytest.raises(InputError, match="no labels"):
        clip.classify(images[0], [])
    with pytest.raises(InputError, match="template 'x'"):
        clip.classify(images[0], ["a"], templates=["x"])


def test_search_finds_what_all_cosines_at_once_find(
    clip: clipglot.CLIP, tiny_cache: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = clipglot.open_cache(tiny_cache)
    cosines = clip.encode_text(["a circle", "b"]) @ cache.to_numpy().astype(np.float32).T
    monkeypatch.setattr("clipglot.search.exact.READ_BYTES", 1)  # a chunk at a time
    for found, expected in zip(clip.search(cache, ["a circle", "b"], k=7), cosines, strict=True):
        order = np.argsort(-expected, kind="stable")[:7]
        assert [hit.row for hit in found] == order.tolist()
        np.testing.assert_allclose([hit.score for hit in found], expected[order], atol=1e-6)
    best = clip.search(tiny_cache, images[0], k=1)
    assert best[0].key == cache.keys[best[0].row] == f"images/{images[0].name}"
    assert best[0].score > 0.999
    assert len(clip.search(tiny_cache, "x", k=1000)) == int(cache.is_embedded.sum())
    assert "images/" in best._repr_html_()
    with pytest.raises(InputError, match="k is 0"):
        clip.search(tiny_cache, "x", k=0)


def test_a_cache_of_another_tower_is_refused(clip: clipglot.CLIP, other_clip: Path, tiny_cache: Path) -> None:
    with pytest.raises(InputError, match=r"image tower of .* is another \(weights_sha256"):
        clipglot.load(other_clip, device="cpu").search(tiny_cache, "x")


def test_clips_of_others_are_computed_as_open_clip_does(tmp_path: Path) -> None:
    for unpadded in (True, False):
        text = TINY_CONFIG["text_cfg"] | {"vocab_size": 49408, "no_causal_mask": not unpadded}
        (folder := tmp_path / str(unpadded)).mkdir()
        save_tiny_clip(folder, seed=2, config=TINY_CONFIG | {"text_cfg": text})
        clip = clipglot.load(folder, device="cpu")
        assert (clip.model.text_tower is not None) == unpadded
        model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        ids = open_clip.get_tokenizer(f"local-dir:{folder}")(texts := [*CAPTIONS, "a cat <end_of_text> and a dog"])
        np.testing.assert_allclose(clip.encode_text(texts), unit(model.eval().encode_text(ids)), atol=2e-6)


@pytest.mark.parametrize("what", ["run", "cache", "absent", "empty"])
def test_other_folders_are_refused_with_what_to_do(what: str, tiny_run: Path, tiny_cache: Path, tmp_path: Path) -> None:
    path, reason = {
        "run": (tiny_run, "is a run: merge it with `clipglot export"),
        "cache": (tiny_cache, "is a cache: open it with clipglot.open_cache"),
        "absent": (tmp_path / "absent", "no such folder"),
        "empty": (tmp_path, "no open_clip_config.json in it"),
    }[what]
    with pytest.raises(EncoderError, match=reason):
        clipglot.load(path)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["config.json"], r"another library, AutoModel\.from_pretrained"),
        (["config.json", "modules.json"], r"another library, SentenceTransformer\("),
        (["transformers/config.json", "open_clip/open_clip_config.json"], r"has one in it: load .*/open_clip$"),
        (["onnx/clipglot.json", "onnx/textual/model.onnx"], r"has one in it: load .*/onnx$"),
    ],
)
def test_exports_for_other_libraries_are_told_from_no_export(files: list[str], reason: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(EncoderError, match=reason):
        clipglot.load(tmp_path)


def test_importing_clipglot_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'zarr', 'rich', 'open_clip'}"
    code = f"import sys, clipglot; dir(clipglot); print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_a_repository_of_the_hub_is_loaded_as_its_folder(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: clipglot.CLIP
) -> None:
    snapshot = tmp_path / "models--org--clip" / "snapshots" / ("0" * 40)
    shutil.copytree(merged, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loaded = clipglot.load("org/clip", device="cpu")
    assert repr(loaded).startswith("CLIP('org/clip'")
    np.testing.assert_array_equal(loaded.encode_text(CAPTIONS), clip.encode_text(CAPTIONS))
    with pytest.raises(EncoderError, match="org/other: no such folder, and the hub gives no such model"):
        clipglot.load("org/other")


def test_mistakes_of_calls_are_named(clip: clipglot.CLIP, images: list[Path], merged: Path) -> None:
    for size in (0, -1):
        with pytest.raises(InputError, match=f"batch_size is {size}"):
            clip.encode_text(["a", "b"], batch_size=size)
        with pytest.raises(InputError, match=f"batch_size is {size}"):
            clip.encode_image(images, batch_size=size)
    with pytest.raises(InputError, match="image 1: "):
        clip.encode(["a", Path("absent.png"), images[0]])
    with pytest.warns(UserWarning, match="image 1: "):
        assert np.isfinite(clip.encode(["a", Path("absent.png")], skip_errors=True)[0]).all()
    assert clip.encode(["a"], skip_errors=True).shape == (1, clip.dim)
    for odd_text in (None, 3, images[0]):
        with pytest.raises(InputError, match="pass a text or several"):
            clip.encode_text(odd_text)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is a folder: pass the files in it"):
        clip.encode_image(images[0].parent)
    np.testing.assert_array_equal(clip.encode_image(file for file in images), clip.encode_image(images))
    with pytest.raises(InputError, match="no path"):
        clip.encode_image("a\0.jpg")
    with pytest.raises(InputError, match="no labels"):
        clip.classify(images[0], ["a", None])  # type: ignore[list-item]
    for odd in (0.0, np.nan):
        with pytest.raises(InputError, match="points nowhere"):
            clip.similarity(np.full((1, clip.dim), odd, np.float32), "a")
    for name in ("./absent", "absent"):
        with pytest.raises(EncoderError, match="no such folder"):
            clipglot.load(name)
    with pytest.raises(EncoderError, match="device='cdua'"):
        clipglot.load(merged, device="cdua")
