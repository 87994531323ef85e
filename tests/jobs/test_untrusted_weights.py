"""Untrusted weights: no option that names weights runs code from a pickle, and each refusal has our own message."""

import gc
import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clipglot.distill.errors import DistillError
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.encoders.image_tower import load_image_tower
from clipglot.encoders.merged_clip import load_merged
from clipglot.encoders.text_lm import LMTower
from clipglot.encoders.text_scratch import ScratchTower
from clipglot.encoders.text_teacher import load_with_teacher
from support.hostile_models import PICKLES, Malicious, in_hub, refused, zip_of_torch
from support.tiny_lms import save_tiny_lm


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


def test_the_pickles_are_malicious(mark: Path) -> None:
    for make in PICKLES.values():
        content = make({"state_dict": Malicious(mark)})
        if make is pickle.dumps:
            pickle.loads(content)
        else:
            torch.load(io.BytesIO(content), weights_only=False)
        assert mark.exists()
        mark.unlink()


@pytest.fixture(scope="module")
def model_name(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny CLIP, known to open_clip by name; another one has the image tower of a SigLIP, read from numpy files."""
    folder = tmp_path_factory.mktemp("configs")
    config = json.loads((tiny_clip / "open_clip_config.json").read_text())["model_cfg"]
    (folder / "clipglot-untrusted.json").write_text(json.dumps(config))
    vision = {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none", "image_size": 160}
    (folder / "clipglot-untrusted-siglip.json").write_text(
        json.dumps(config | {"vision_cfg": vision, "embed_dim": 64, "custom_text": True})
    )
    open_clip.add_model_config(folder)
    return "clipglot-untrusted"


LOADERS: dict[str, Callable[[str, str | None], Any]] = {
    "image tower": load_image_tower,
    "teacher": load_with_teacher,
    "text clip": ScratchTower.from_clip,
}


@pytest.mark.parametrize("form", PICKLES)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors"])
@pytest.mark.parametrize("model", ["open_clip", "timm/test_vit"])
def test_a_weights_file_runs_no_code(
    model: str, suffix: str, form: str, model_name: str, mark: Path, tmp_path: Path
) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(PICKLES[form]({"state_dict": Malicious(mark)}))
    model = model_name if model == "open_clip" else model
    message = refused(lambda: load_image_tower(model, str(file)), mark)
    expected = "the file is damaged" if suffix == ".safetensors" else "save its tensors as safetensors"
    assert f"--pretrained {file}" in message
    assert expected in message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # numpy's files are left open
@pytest.mark.parametrize(
    ("model", "array"),
    [
        ("timm/vit_tiny_patch16_224", "embedding/kernel"),
        ("clipglot-untrusted-siglip", "img/embedding/kernel"),
        ("clipglot-untrusted", "img/embedding/kernel"),
        ("timm/test_vit", "embedding/kernel"),
    ],
)
def test_a_numpy_file_runs_no_code(model: str, array: str, model_name: str, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.npz"
    np.savez(file, **{array: np.array([Malicious(mark)], dtype=object)})
    message = refused(lambda: load_image_tower(model, str(file)), mark)
    assert any(part in message for part in ("could run any code", "is damaged", "belong to another model"))
    gc.collect()


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "pytorch_model.bin", "model.pth", "model.safetensors"])
def test_an_open_clip_folder_runs_no_code(name: str, loader: str, tiny_clip: Path, mark: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_clip / "open_clip_config.json", tmp_path)
    (tmp_path / name).write_bytes(zip_of_torch({"state_dict": Malicious(mark)}))
    assert str(tmp_path) in refused(lambda: LOADERS[loader](f"local-dir:{tmp_path}", None), mark)


@pytest.mark.parametrize(
    ("model", "repository", "file"),
    [
        ("timm/test_vit.r160_in1k", "timm/test_vit.r160_in1k", "pytorch_model.bin"),
        ("hf-hub:stranger/clip", "stranger/clip", "open_clip_pytorch_model.bin"),
    ],
)
def test_weights_of_the_hub_run_no_code(
    model: str, repository: str, file: str, tiny_clip: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(tiny_clip / "open_clip_config.json", folder)
    (folder / file).write_bytes(zip_of_torch({"state_dict": Malicious(mark)}))
    in_hub(tmp_path / "hub", repository, folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "could run any code" in refused(lambda: load_image_tower(model, None), mark)


@pytest.mark.parametrize("loader", LOADERS)
def test_every_loader_refuses_a_weights_file(loader: str, model_name: str, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(zip_of_torch({"state_dict": Malicious(mark)}))
    refused(lambda: LOADERS[loader](model_name, str(file)), mark)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_torchscript_archive_is_not_run(model_name: str, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    for model in (model_name, "timm/test_vit"):
        assert "TorchScript" in refused(lambda model=model: load_image_tower(model, str(file)), mark)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "tf_model.h5", "model.ckpt.index"])
def test_a_language_model_runs_no_code(name: str, mark: Path, tmp_path: Path) -> None:
    folder = save_tiny_lm(tmp_path / "lm")
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(zip_of_torch({"embeddings.word_embeddings.weight": Malicious(mark)}))
    assert f"--text {folder}" in refused(lambda: LMTower.from_pretrained(str(folder), 16), mark)


@pytest.mark.parametrize("form", PICKLES)
def test_a_checkpoint_runs_no_code(form: str, tiny_run: Path, mark: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(tiny_run, tmp_path / "run"))
    (run.path / "checkpoints" / "step-000000999.pt").write_bytes(PICKLES[form]({"tower": Malicious(mark), "step": 999}))
    assert "step-000000999.pt" in refused(run.load_checkpoint, mark, DistillError)


@pytest.mark.parametrize("form", PICKLES)
def test_a_final_tower_runs_no_code(form: str, tiny_run: Path, mark: Path, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(tiny_run, tmp_path / "run"))
    (run.final / "text.safetensors").write_bytes(PICKLES[form](Malicious(mark)))
    assert str(run.final) in refused(lambda: load_final(run), mark, DistillError)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_merged_clip_runs_no_code(name: str, merged: Path, mark: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(merged, tmp_path / "merged")
    (folder / "open_clip_model.safetensors").unlink()
    (folder / name).write_bytes(zip_of_torch({"state_dict": Malicious(mark)}))
    assert str(folder) in refused(lambda: load_merged(folder), mark)
