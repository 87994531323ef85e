"""An export in ONNX runs without torch, gives the answers of the merged folder, and is refused where it is hostile."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clipglot
import numpy as np
import onnx
import pytest
from clipglot.distill.errors import DistillError
from clipglot.encoders.errors import EncoderError
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.command_line import run
from support.exported_towers import captions
from support.launcher import Process
from support.odd_strings import odd_strings


@pytest.fixture(scope="module")
def onnx_clip(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged CLIP of the tiny run in ONNX."""
    folder = tmp_path_factory.mktemp("onnx") / "clip"
    export_run(ExportSettings(run=merged, output=folder, format=("onnx",)))
    return folder


def test_features_are_those_of_the_merged_folder(
    onnx_clip: Path, clip: clipglot.CLIP, manifest: Path, tiny_cache: Path
) -> None:
    loaded = clipglot.load(onnx_clip)
    assert (loaded.dim, loaded.device, loaded.logit_scale) == (clip.dim, "cpu", pytest.approx(clip.logit_scale))
    texts = [*captions(), *odd_strings(300, seed=5), ""]
    np.testing.assert_allclose(loaded.encode_text(texts), clip.encode_text(texts), atol=1e-5)
    np.testing.assert_allclose(loaded.encode_text(texts[:7], batch_size=2), clip.encode_text(texts[:7]), atol=1e-5)
    images = sorted((manifest.parent / "images").glob("*.png"))[:9]
    np.testing.assert_allclose(loaded.encode_image(images), clip.encode_image(images), atol=1e-5)
    np.testing.assert_allclose(loaded.preprocess(images[0]), clip.preprocess(images[0]).numpy(), atol=1e-6)
    assert loaded.search(tiny_cache, images[3], k=1)[0].key == f"images/{images[3].name}"


def test_the_commands_give_the_same_answers_without_torch(
    onnx_clip: Path, merged: Path, tiny_cache: Path, manifest: Path
) -> None:
    image = manifest.parent / "images" / "0000.png"
    commands = [
        ["predict", "FOLDER", image, "--text", "a", "--text", "b b"],
        ["eval", "retrieval", "FOLDER", tiny_cache],
    ]
    script = """
import sys
from clipglot.cli.main import main
try:
    main()
finally:
    assert not {"torch", "open_clip"} & set(sys.modules)
"""
    for command in commands:
        alone, beside = (
            [*(str(folder if word == "FOLDER" else word) for word in command), "--json"]
            for folder in (onnx_clip, merged)
        )
        done = subprocess.run([sys.executable, "-c", script, *alone], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        expected = run(*beside)
        assert expected.exit_code == 0, expected.output
        assert json.dumps(rounded(json.loads(done.stdout))) == json.dumps(rounded(json.loads(expected.stdout)))


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


@pytest.mark.parametrize("quantize", ["int8-embeddings", pytest.param("int8", marks=pytest.mark.slow)])
def test_quantized_text_models_are_smaller_and_tell_what_they_lose(
    quantize: Any, onnx_clip: Path, merged: Path, tmp_path: Path, start_command: Callable[..., Process]
) -> None:
    options = ["--format", "onnx", "--quantize", quantize, "--json"]
    told = json.loads(start_command("export", merged, "-o", tmp_path / "q", *options).succeed())
    (written,) = told["formats"]
    sizes = [(folder / "textual/model.onnx").stat().st_size for folder in (tmp_path / "q", onnx_clip)]
    assert sizes[0] < sizes[1]
    assert any("cosine" in note for note in written["notes"])
    exact, reduced = (clipglot.load(folder).encode_text(captions()) for folder in (onnx_clip, tmp_path / "q"))
    assert (exact * reduced).sum(1).min() > 0.95


def test_quantizing_is_of_onnx_alone(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="onnx"):
        export_run(ExportSettings(run=merged, output=tmp_path / "q", format=("transformers",), quantize="int8"))


def leads_out(folder: Path) -> None:
    model = onnx.load(folder / "textual/model.onnx")
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../../secret")
    (folder / "textual/model.onnx").write_bytes(model.SerializeToString())


def of_another_domain(folder: Path) -> None:
    model = onnx.load(folder / "textual/model.onnx")
    model.graph.node[0].domain = "stranger"
    (folder / "textual/model.onnx").write_bytes(model.SerializeToString())


def fifo(folder: Path) -> None:
    import os

    (folder / "visual/model.onnx").unlink()
    os.mkfifo(folder / "visual/model.onnx")


def edited(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "clipglot.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


HOSTILE: dict[str, Callable[[Path], None]] = {
    "leads out": leads_out,
    "another domain": of_another_domain,
    "fifo": fifo,
    "dim": edited(dim=10**12),
    "no dim": edited(dim="x"),
    "scale": edited(logit_scale="nan"),
    "inputs": edited(text_inputs=["a"]),
    "encoder": edited(encoder=None),
    "no graph": lambda folder: (folder / "textual/model.onnx").write_bytes(b"\x08" * 100),
    "no tokenizer": lambda folder: (folder / "textual/tokenizer.json").write_text("{}"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_folder_is_refused(what: str, onnx_clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(onnx_clip, tmp_path / "clip"))
    HOSTILE[what](folder)
    with pytest.raises(EncoderError, match=str(tmp_path)):
        clipglot.load(folder).encode_text("a")
