"""Exports in other formats are loaded by their own library alone, and give open_clip's features.

Each is loaded in a process that never imports clipglot, takes 200 captions in four languages through the exported
tokenizer and 50 images of odd sizes through the exported preprocessing, and is compared with what open_clip gives for
the export in its own format.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clipglot.cache.write.image_decode import ResizeCrop
from clipglot.encoders.merged_clip import load_merged
from clipglot.exports.errors import ExportError
from clipglot.exports.formats import write_format
from clipglot.exports.hf_tokenizer import write_tokenizer
from clipglot.exports.portable_tokenizer import portable_tokenizer
from clipglot.inference.images import to_pixels
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.exported_towers import BY_OPEN_CLIP, captions, draw_odd_sizes, save_merged
from support.launcher import Launcher

START = """
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
folder, images, texts, output = sys.argv[1:]
texts = json.loads(Path(texts).read_text())
images = [Image.open(file).convert("RGB") for file in sorted(Path(images).iterdir())]
"""
END = """
np.savez(output, text=text, image=image)
assert "clipglot" not in sys.modules
"""
LOAD = {
    "transformers": """
import torch
from transformers import AutoModel, AutoProcessor
model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
with torch.inference_mode():
    given = processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt")
    outputs = model(**given)
text, image = outputs.text_embeds.numpy(), outputs.image_embeds.numpy()
""",
    "sentence-transformers": """
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(folder, device="cpu")
text, image = model.encode(texts), model.encode(images)
""",
    "onnx": """
import onnxruntime
from open_clip.transform import PreprocessCfg, image_transform_v2
from tokenizers import Tokenizer
root = Path(folder)
def session(part):
    return onnxruntime.InferenceSession(str(root / part / "model.onnx"), providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file(str(root / "textual/tokenizer.json"))
textual, visual = session("textual"), session("visual")
encoded = tokenizer.encode_batch(texts)
columns = [[e.ids for e in encoded], [e.attention_mask for e in encoded]]
given = {i.name: np.array(column, np.int32) for i, column in zip(textual.get_inputs(), columns)}
text = textual.run(None, given)[0]
preprocess = image_transform_v2(PreprocessCfg(**json.loads((root / "visual/preprocess_cfg.json").read_text())), False)
image = visual.run(None, {visual.get_inputs()[0].name: np.stack([preprocess(i).numpy() for i in images])})[0]
""",
}
SLOW = pytest.mark.slow
CELLS = [
    ("scratch", "transformers"),
    ("scratch-sigmoid", "sentence-transformers"),
    ("scratch", "onnx"),
    *(
        pytest.param(kind, format_, marks=SLOW)
        for kind, format_ in (
            ("english", "transformers"),
            ("english", "sentence-transformers"),
            ("english", "onnx"),
            ("scratch-timm", "transformers"),
            ("bert-cls", "transformers"),
            ("scratch-timm", "sentence-transformers"),
            ("bert-mean", "sentence-transformers"),
            ("bert-mean-timm", "sentence-transformers"),
            ("bert-cls", "sentence-transformers"),
            ("mt5-mean", "sentence-transformers"),
            ("t5-mean", "sentence-transformers"),
            ("umt5-mean-timm", "sentence-transformers"),
            ("roberta-mean", "sentence-transformers"),
            ("scratch-timm", "onnx"),
            ("scratch-sigmoid", "onnx"),
            ("bert-mean", "onnx"),
            ("bert-cls-timm", "onnx"),
            ("mt5-mean", "onnx"),
            ("t5-mean", "onnx"),
            ("umt5-cls-timm", "onnx"),
            ("roberta-mean", "onnx"),
            ("gpt2-eos", "onnx"),
        )
    ),
]


def run_code_of(card: str, folder: Path) -> None:
    """Run the Python of a card, pasted, in the folder that the export lies in."""
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    with contextlib.chdir(folder):
        exec(code, {})


def unit(features: Any) -> Any:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize(("kind", "name"), CELLS)
def test_the_library_alone_gives_the_features_of_open_clip(
    kind: str, name: Any, tiny_clip: Path, launcher: Launcher, tmp_path: Path
) -> None:
    merged, images = save_merged(kind, tmp_path, tiny_clip), draw_odd_sizes(tmp_path / "images")
    (tmp_path / "texts.json").write_text(json.dumps(captions()))
    result = export_run(ExportSettings(run=merged, output=tmp_path / "out", format=(name,)))
    arguments = [images, tmp_path / "texts.json"]
    launcher.run(START + LOAD[name] + END, tmp_path / "out", *arguments, tmp_path / "found.npz", folder=tmp_path)
    found = np.load(tmp_path / "found.npz")
    clip = load_merged(merged)
    if clip.text_tower is None or clip.text_tower.config.loads_in_open_clip:
        launcher.run(BY_OPEN_CLIP, merged, *arguments, tmp_path / "expected.npz", folder=tmp_path)
        expected = np.load(tmp_path / "expected.npz")
    else:  # open_clip has no such text tower
        geometry = ResizeCrop.from_preprocess(clip.preprocess)
        pixels = np.stack([to_pixels(image, geometry) for image in sorted(images.iterdir())])
        expected = {"text": clip.encode_texts(captions()), "image": clip.encode_pixels(pixels)}
    for part, num in (("text", 200), ("image", 50)):
        assert found[part].shape == (num, clip.dim)
        assert np.abs(unit(found[part]) - unit(expected[part])).max() <= 1e-5, part
    (written,) = result.formats
    assert written.text_difference is not None
    assert written.text_difference <= 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in card
    assert all(note in card for note in written.notes)
    run_code_of(card, tmp_path)
    if "sigmoid" in kind and name != "onnx":
        assert "-5" in card, "the bias is told"


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("bert-mean", "transformers", "sentence-transformers"),
        ("gpt2-eos", "transformers", "onnx"),
        ("bert-cls-timm", "transformers", "sentence-transformers"),
    ],
)
def test_what_no_class_holds_is_refused_with_the_format_that_can(
    kind: str, name: Any, reason: str, tiny_clip: Path, tmp_path: Path
) -> None:
    merged = save_merged(kind, tmp_path, tiny_clip)
    with pytest.raises(ExportError, match=reason):
        export_run(ExportSettings(run=merged, output=tmp_path / "out", format=(name,)))
    assert not (tmp_path / "out").exists()


def test_an_absent_library_is_named(tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = load_merged(save_merged("scratch", tmp_path, tiny_clip))
    for name, module in (("onnx", "onnxruntime"), ("sentence-transformers", "sentence_transformers")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        (folder := tmp_path / name).mkdir()
        with pytest.raises(ExportError, match=f"pip install .*{name.partition('-')[0]}"):
            write_format(name, folder, clip)


PIPELINE = """
import functools, json, sys
from PIL import Image
from transformers import pipeline
folder, image, labels, output = sys.argv[1:]
pipe = pipeline("zero-shot-image-classification", model=folder)
image, found = Image.open(image).convert("RGB"), []
for each in json.loads(labels):
    try:
        found.append(pipe(image, candidate_labels=each, hypothesis_template="{}"))
    except ValueError:  # a label beyond the context, which the pipeline does not cut
        pipe.tokenizer = functools.partial(pipe.tokenizer, truncation=True)  # as the card says
        found += [None, pipe(image, candidate_labels=each, hypothesis_template="{}")]
json.dump(found, open(output, "w"))
assert "clipglot" not in sys.modules
"""


@pytest.mark.slow
def test_a_zero_shot_pipeline_gives_the_probabilities_of_classify(
    tiny_clip: Path, launcher: Launcher, tmp_path: Path
) -> None:
    import clipglot

    merged, images = save_merged("scratch", tmp_path, tiny_clip), draw_odd_sizes(tmp_path / "images")
    export_run(ExportSettings(run=merged, output=tmp_path / "out", format=("transformers",)))
    asked = [["red circle", "blue square"], ["red circle " * 40, "blue square"]]
    where = (tmp_path / "out", images / "00.png")
    launcher.run(PIPELINE, *where, json.dumps(asked), tmp_path / "found.json", folder=tmp_path)
    short, uncut, cut = json.loads((tmp_path / "found.json").read_text())
    assert uncut is None, "the pipeline cuts labels by itself now: say so in the card"
    assert "functools.partial(pipe.tokenizer, truncation=True)" in (tmp_path / "out" / "README.md").read_text()
    clip = clipglot.load(merged, device="cpu")
    for labels, answer in zip(asked, (short, cut), strict=True):
        expected = clip.classify(images / "00.png", labels)
        given = {each["label"]: each["score"] for each in answer}
        assert given == pytest.approx(dict(zip(expected.labels, expected.probabilities, strict=True)), abs=1e-4)


@pytest.mark.slow
def test_several_formats_get_a_folder_each(tiny_run: Path, tmp_path: Path) -> None:
    result = export_run(ExportSettings(run=tiny_run, output=tmp_path / "out", format=("open_clip", "transformers")))
    assert [each.folder.name for each in result.formats] == ["open_clip", "transformers"]
    assert (tmp_path / "out/open_clip/open_clip_config.json").exists()
    assert (tmp_path / "out/transformers/config.json").exists()
    assert "transformers/README.md" in (tmp_path / "out/README.md").read_text()


def test_an_export_leaves_the_tokenizer_that_it_is_compared_with(tiny_clip: Path, tmp_path: Path) -> None:
    clip = load_merged(save_merged("bert-mean", tmp_path, tiny_clip))
    before = clip.tokenizer.backend.to_str()
    write_tokenizer(tmp_path / "out", clip.tokenizer, clip.context_length)
    portable_tokenizer(clip.tokenizer, clip.context_length)
    assert clip.tokenizer.backend.to_str() == before
