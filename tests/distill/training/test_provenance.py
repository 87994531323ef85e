"""Provenance of runs and exports: absolute paths in records, none in exports, and identity of the image tower."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from clipglot.cache.errors import CacheError
from clipglot.cache.storage.atomic import lock_folder
from clipglot.distill.provenance import encoder_info, public_provenance
from clipglot.distill.training.run_folder import RunFolder
from clipglot.encoders.image_tower import load_image_tower
from clipglot.encoders.merged_clip import load_merged
from clipglot.evals.captions import require_tower_of
from clipglot.evals.errors import EvalError
from clipglot.jobs.cache import cache_images
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.cache import CacheSettings
from clipglot.jobs.settings.export import ExportSettings
from safetensors.torch import save_file
from support.drawings import draw_images


def test_a_source_in_utf_8_is_described_as_earlier_versions_do(tiny_cache: Path, tiny_run: Path) -> None:
    """Another key would end the resuming of earlier runs, and earlier versions would refuse new caches."""
    keys = "first_row image_field image_root images kind language_field languages limit path sha256 split"
    keys += " teacher_fields text_fields where"
    metadata = json.loads((tiny_cache / "zarr.json").read_text())["attributes"]["clipglot"]
    for source in (metadata["source"], RunFolder(tiny_run).provenance()["source"]):
        assert " ".join(sorted(source)) == keys


def test_a_run_made_with_relative_paths_is_exported_from_elsewhere(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    draw_images(Path("pictures"), 10)
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), "vit.safetensors")
    settings = CacheSettings(
        source=Path("pictures/pairs.jsonl"),
        output=Path("c.zarr"),
        model="timm/test_vit",
        pretrained="vit.safetensors",
        num_workers=1,
    )
    cache_images(settings)
    make_run(Path("c.zarr"), Path("run"), epochs=1)
    monkeypatch.chdir(tmp_path / "there")
    assert export_run(ExportSettings(run=Path("../here/run"), output=Path("merged"))).num_probes == 8


def test_records_have_absolute_file_paths_and_unchanged_names(
    tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_clip.parent)
    tower = load_image_tower(f"local-dir:{tiny_clip.name}", None)
    assert encoder_info(tower).model == f"local-dir:{tiny_clip}"
    monkeypatch.chdir(tmp_path)
    for file in ("openai", "vit.pt"):
        Path(file).write_bytes(b"")
    for model, pretrained, expected in (
        ("ViT-B/32", "openai", "openai"),  # a tag, also where a file has its name
        ("ViT-B-32", "vit.pt", str(tmp_path / "vit.pt")),
        ("ViT-B-32", "gone.pt", "gone.pt"),
        ("timm/test_vit", "vit.pt", str(tmp_path / "vit.pt")),
        ("hf-hub:org/name", None, None),
    ):
        info = encoder_info(replace(tower, model=model, pretrained=pretrained))
        assert (info.model, info.pretrained) == (model, expected)


@pytest.mark.parametrize(
    ("model", "pretrained", "public"),
    [
        ("local-dir:/home/me/a:b/clip", None, ("local-dir:clip", None)),
        ("timm/vit_tiny", "/home/me/gone/vit.pt", ("timm/vit_tiny", "vit.pt")),
        ("ViT-B/32", "gone/vit.pt", ("ViT-B/32", "vit.pt")),
        ("ViT-B-32", "openai", ("ViT-B-32", "openai")),
        ("hf-hub:org/name", None, ("hf-hub:org/name", None)),
    ],
)
def test_paths_are_recognized_by_their_form(
    model: str, pretrained: str | None, public: tuple[str, str | None], tiny_run: Path
) -> None:
    provenance = RunFolder(tiny_run).provenance()
    provenance["encoder"] |= {"model": model, "pretrained": pretrained}
    encoder = public_provenance(provenance)["encoder"]
    assert (encoder["model"], encoder["pretrained"]) == public


def test_exports_have_no_path_if_the_weights_moved(
    make_cache: Callable[..., Any], make_run: Callable[..., Path], manifest: Path, tmp_path: Path
) -> None:
    weights, moved = tmp_path / "vit.safetensors", tmp_path / "moved.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), weights)
    make_cache(manifest, tmp_path / "c.zarr", model="timm/test_vit", pretrained=str(weights), limit=16)
    run = make_run(tmp_path / "c.zarr", tmp_path / "run", epochs=1)
    weights.rename(moved)
    folder = export_run(ExportSettings(run=run, output=tmp_path / "merged", pretrained=str(moved))).folder
    private = str(tmp_path).encode()
    assert not [file.name for file in folder.rglob("*") if file.is_file() and private in file.read_bytes()]


def test_equal_weights_with_another_normalization_are_another_tower(
    merged: Path, tiny_clip: Path, make_cache: Callable[..., Any], manifest: Path, tmp_path: Path
) -> None:
    clip = shutil.copytree(tiny_clip, tmp_path / "clip")
    config = json.loads((clip / "open_clip_config.json").read_text(encoding="utf-8"))
    config["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    (clip / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    cache = make_cache(manifest, tmp_path / "c.zarr", model=f"local-dir:{clip}", limit=2).cache
    with pytest.raises(EvalError, match=r"c\.zarr was made by .* \(preprocess .*0\.1, 0\.2, 0\.3"):
        require_tower_of(load_merged(merged), cache)


def test_a_second_writer_of_a_cache_is_refused(make_cache: Callable[..., Any], manifest: Path, tmp_path: Path) -> None:
    with lock_folder(tmp_path / "c.zarr"), pytest.raises(CacheError, match="another clipglot command is writing it"):
        make_cache(manifest, tmp_path / "c.zarr")
