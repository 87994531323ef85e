"""Exports of runs on features of a frozen language model: every head, layers and the prompt, loaded elsewhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import clipglot
import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner
from clipglot.cache.read.cache import Cache
from clipglot.cli.main import main
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.text_lm import LMTower
from clipglot.encoders.tokenizer_lm import LMTokenizer
from clipglot.exports.errors import ExportError
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.tiny_lms import CONTEXT, save_tiny_lm

PROMPT = "query: "


def run_with(lm_settings: Any, cache: Path, **changes: Any) -> RunFolder:
    given = replace(lm_settings, cache=cache, train_layers=0, epochs=2, text_prompt=PROMPT, lr=1e-2, **changes)
    train(given)
    return RunFolder(given.output)


def training_embeddings(run: RunFolder, cache: Cache) -> np.ndarray[Any, Any]:
    """Embeddings of all captions by the head, from the features that training read."""
    (group,) = (cache.path / "tokens").glob("features-*")
    pooled = np.asarray(open_zarr(group)[0]).astype(np.float32)
    tower = load_final(run).tower
    assert isinstance(tower, LMTower)
    with torch.inference_mode():
        features = tower.text["proj"](torch.from_numpy(pooled))
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def open_zarr(group: Path) -> Any:
    import zarr

    return zarr.open_group(str(group), mode="r")["pooled"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"head": "linear"}, marks=pytest.mark.slow),
        pytest.param({"head": "mlp"}, marks=pytest.mark.slow),
        {"head": "glu", "text_layers": "1,3"},
        pytest.param({"head": "deep", "pooler": "cls", "text_layers": "2"}, marks=pytest.mark.slow),
        pytest.param({"head": "mlp", "warm_start": "ridge"}, marks=pytest.mark.slow),
        {"head": "deep", "warm_start": "ridge", "text_layers": "1,2,3"},
    ],
    ids=lambda changes: "-".join(changes.values()),
)
def test_exports_embed_texts_as_training_did(
    changes: dict[str, Any], lm_settings: Any, make_cache: Any, manifest: Path, tmp_path: Path
) -> None:
    make_cache(manifest, tmp_path / "cache.zarr")
    cache = Cache(tmp_path / "cache.zarr")
    run = run_with(lm_settings, cache.path, **changes)
    expected, captions = training_embeddings(run, cache), cache.captions()
    result = export_run(ExportSettings(run=run.path, output=tmp_path / "out", format=("open_clip", "onnx")))
    native = changes["head"] in ("linear", "mlp") and not {"text_layers", "warm_start"} & changes.keys()
    assert result.formats[0].loaded_by == ("open_clip" if native else "clipglot")
    for name in ("open_clip", "onnx"):
        given = clipglot.load(tmp_path / "out" / name).encode_text(captions)
        np.testing.assert_allclose(given, expected, rtol=0, atol=2e-3)  # features are float16
        assert PROMPT in (tmp_path / "out" / name / "README.md").read_text(encoding="utf-8")
    folder = tmp_path / "out" / "open_clip"
    text_cfg = open_clip.get_model_config(f"local-dir:{folder}")["text_cfg"] | {"hf_model_name": str(folder)}
    if native:
        model, *_ = open_clip.create_model_and_transforms(f"local-dir:{folder}", text_cfg=text_cfg)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        with torch.inference_mode():
            theirs = torch.nn.functional.normalize(model.eval().encode_text(tokenizer(captions)), dim=-1)
        np.testing.assert_allclose(theirs.numpy(), expected, rtol=0, atol=2e-3)
    else:
        with pytest.raises((KeyError, RuntimeError)):  # it does not load something else in silence
            open_clip.create_model_and_transforms(f"local-dir:{folder}", text_cfg=text_cfg)
        with pytest.raises(ExportError, match=r"--format onnx, or open_clip"):
            export_run(ExportSettings(run=run.path, output=tmp_path / "st", format=("sentence-transformers",)))


def test_without_its_prompt_a_text_has_other_features(lm_settings: Any, tiny_cache: Path, tmp_path: Path) -> None:
    embedded = []
    for prompt in ("", PROMPT):
        run = replace(lm_settings, train_layers=0, epochs=1, text_prompt=prompt, output=tmp_path / f"run{len(prompt)}")
        train(run)
        export_run(ExportSettings(run=run.output, output=tmp_path / f"out{len(prompt)}"))
        embedded.append(clipglot.load(tmp_path / f"out{len(prompt)}").encode_text(["a red circle"]))
    assert np.abs(embedded[0] - embedded[1]).max() > 1e-2


@pytest.mark.parametrize("family", ["bert", "gpt2", "mt5"])
def test_a_saved_prompt_is_applied_by_every_reader(family: str, tmp_path: Path) -> None:
    folder = save_tiny_lm(tmp_path / "lm", family)
    plain = LMTokenizer.load_for_new(folder)
    expected = plain.encode([PROMPT + "a red circle", PROMPT + "шум"], CONTEXT)
    prompted = LMTokenizer.load_for_new(folder).with_prompt(PROMPT, "lm")
    assert prompted.fingerprint(CONTEXT) != plain.fingerprint(CONTEXT)
    prompted.save(tmp_path / "saved")
    for tokenizer in (prompted, LMTokenizer.load(tmp_path / "saved")):
        assert tokenizer.prompt == PROMPT
        assert tokenizer.encode(["a red circle", "шум"], CONTEXT) == expected
    assert (
        LMTokenizer.load(tmp_path / "saved").with_prompt(PROMPT, "lm").encode(["a red circle"], CONTEXT) == expected[:1]
    )
    with pytest.raises(EncoderError, match=r"--text-prompt 'passage: '.*'query: '"):
        prompted.with_prompt("passage: ", "lm")


def test_a_run_goes_on_with_the_prompt_of_the_run_before(
    lm_settings: Any, make_cache: Any, manifest: Path, tmp_path: Path
) -> None:
    make_cache(manifest, tmp_path / "cache.zarr")
    run = run_with(lm_settings, tmp_path / "cache.zarr")
    following = replace(lm_settings, text=str(run.path), output=tmp_path / "next", epochs=1, train_layers=0)
    train(following)
    assert LMTokenizer.load(RunFolder(following.output).tokenizer).prompt == PROMPT
    with pytest.raises(EncoderError, match="--text-prompt"):
        train(replace(following, output=tmp_path / "other", text_prompt="passage: "))


def test_the_command_says_why_a_frozen_model_runs_in_every_step(
    lms: dict[str, Path], tiny_cache: Path, tmp_path: Path
) -> None:
    given = [
        "train",
        str(tiny_cache),
        "--text",
        str(lms["bert"]),
        "--train-layers",
        "0",
        "--context-length",
        str(CONTEXT),
    ]
    given += ["--epochs", "1", "--batch-size", "8", "--device", "cpu"]
    for number, more in enumerate(([], ["--token-dropout", "0.1"])):
        result = CliRunner().invoke(main, [*given, "-o", str(tmp_path / f"run{number}"), *more])
        assert result.exit_code == 0, result.output
        assert ("in every step because of --token-dropout 0.1" in result.output) == bool(more)
        again = CliRunner().invoke(
            main, ["train", given[1], "-o", str(tmp_path / f"run{number}"), "--resume", "--json"]
        )
        assert json.loads(again.stdout)["text_features"] == ("live" if more else "stored")
