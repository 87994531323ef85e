"""Code of strangers: no way to name a model runs the code that its files bring, or asks the user to allow it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import clipglot
import pytest
import transformers
from clipglot.distill.training.final import load_final
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.image_tower import load_image_tower
from clipglot.encoders.loading.untrusted import clip_text_arguments, clip_tokenizer
from clipglot.encoders.merged_clip import load_merged
from clipglot.encoders.text_lm import LMTower
from clipglot.encoders.text_scratch import ScratchTower
from clipglot.encoders.text_teacher import load_with_teacher
from clipglot.encoders.tokenizer_lm import LMTokenizer
from clipglot.jobs.export import export_run
from clipglot.jobs.settings.export import ExportSettings
from support.command_line import run
from support.hostile_models import (
    ADVICE,
    HOSTILE_CLIPS,
    ask_in_config,
    ask_in_tokenizer,
    edit_json,
    edit_text_cfg,
    hostile_lm,
    in_hub,
    refused,
)
from support.tiny_clip import save_tiny_clip
from support.tiny_lms import CONTEXT, save_tiny_lm


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a hub that holds a hostile language model; and a user who allows everything."""
    cache = tmp_path / "hub"
    in_hub(cache, "stranger/lm", hostile_lm(tmp_path / "strangers-lm", mark))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    modules = tmp_path / "modules"
    for place in ("transformers.dynamic_module_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{place}.HF_MODULES_CACHE", str(modules), raising=False)
    return cache


def test_the_code_runs_where_it_is_allowed(mark: Path, hub: Path) -> None:
    transformers.AutoTokenizer.from_pretrained("stranger/lm", trust_remote_code=True)
    assert mark.exists()


Load = Callable[[str], Any]
CLIP_LOADERS: dict[str, Load] = {
    "image tower": lambda model: load_image_tower(model, None),
    "teacher": lambda model: load_with_teacher(model, None),
    "text clip": lambda model: ScratchTower.from_clip(model, None),
    "merged": lambda model: load_merged(Path(model.removeprefix("local-dir:"))),
    "python": lambda model: clipglot.load(model.removeprefix("local-dir:")),
}


@pytest.mark.parametrize("hostile", HOSTILE_CLIPS)
@pytest.mark.parametrize(
    ("loader", "place"),
    [(name, "local") for name in CLIP_LOADERS] + [(name, "hub") for name in CLIP_LOADERS if name != "merged"],
)
def test_a_clip_runs_no_code(loader: str, place: str, hostile: str, hub: Path, mark: Path, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    folder = save_tiny_clip(tmp_path / "clip", seed=0)
    HOSTILE_CLIPS[hostile](folder, mark)
    if place == "hub":
        in_hub(hub, "stranger/clip", folder)
    model = f"local-dir:{folder}" if place == "local" else "hf-hub:stranger/clip"
    message = refused(lambda: CLIP_LOADERS[loader](model), mark)
    assert "open_clip_config.json" in message or "config.json" in message


def test_a_name_in_a_config_is_that_of_a_repository_and_not_of_a_folder(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_hub(hub, "owner/lm", save_tiny_lm(tmp_path / "plain"))
    here = save_tiny_lm(tmp_path / "owner" / "lm")  # another of that name, where the command runs
    edit_json(here / "config.json", num_hidden_layers=1)
    edit_json(here / "tokenizer.json", model=None)
    monkeypatch.chdir(tmp_path)
    config = {"text_cfg": {"hf_model_name": "owner/lm", "hf_tokenizer_name": "owner/lm"}}
    for model in (f"local-dir:{tmp_path}", "hf-hub:owner/clip", "roberta-ViT-B-32"):
        with clip_text_arguments(model, config) as arguments:
            read = json.loads((Path(arguments["text_cfg"]["hf_model_name"]) / "config.json").read_text())
            assert read["num_hidden_layers"] == 3
        if not model.startswith("local-dir:"):  # which has its own
            assert clip_tokenizer(model, config)
    for path in (str(here), "../owner/lm", "owner/lm/", "./owner/lm", "owner/.."):
        with (
            pytest.raises(EncoderError, match="which is no repository of the hub: put the files"),
            clip_text_arguments("hf-hub:owner/clip", {"text_cfg": {"hf_model_name": path}}),
        ):
            pass


@pytest.fixture
def hostile_merged(merged: Path, mark: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(merged, tmp_path / "hostile")
    HOSTILE_CLIPS["tokenizer"](folder, mark)
    return folder


def test_commands_run_no_code(hostile_merged: Path, tiny_cache: Path, manifest: Path, mark: Path, hub: Path) -> None:
    image, lm, output = next(manifest.parent.rglob("*.png")), hub.parent / "strangers-lm", hub.parent / "out"
    for arguments in (
        ["predict", hostile_merged, image, "--text", "a cat"],
        ["eval", "retrieval", hostile_merged, tiny_cache],
        ["cache", manifest, "-o", output, "--model", f"local-dir:{hostile_merged}"],
        ["cache", manifest, "-o", output, "--model", f"local-dir:{hostile_merged}", "--teacher-field", "text"],
        ["train", tiny_cache, "-o", output, "--text", lm],
        ["train", tiny_cache, "-o", output, "--text", "stranger/lm"],
        ["tokenizer", tiny_cache, "-o", output, "--extend", lm],
        ["tokenizer", tiny_cache, "--inspect", lm],
    ):
        result = run(*arguments)
        assert not mark.exists(), arguments
        assert not any(advice in result.output for advice in ADVICE), result.output
        if arguments[0] != "tokenizer":  # which reads its tokenizer.json alone
            assert result.exit_code == 1, result.output
            assert "code" in result.stderr


def test_a_tower_that_a_cache_or_run_names_runs_no_code(
    hostile_merged: Path, tiny_run: Path, mark: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    described = json.loads((folder / "run.json").read_text())
    described["provenance"]["encoder"]["model"] = f"local-dir:{hostile_merged}"
    (folder / "run.json").write_text(json.dumps(described))
    refused(lambda: export_run(ExportSettings(run=folder, output=tmp_path / "out")), mark)


def test_language_models_run_no_code(mark: Path, hub: Path) -> None:
    for source in (str(hub.parent / "strangers-lm"), "stranger/lm"):
        assert "never runs code" in refused(lambda source=source: LMTower.from_pretrained(source, 16), mark)
        assert "never runs code" in refused(lambda source=source: LMTokenizer.load(source), mark)


def test_code_beside_a_known_family_is_left_alone(lms: dict[str, Path], mark: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lms["bert"], tmp_path / "lm")
    ask_in_config(folder, mark, model_type="bert")
    ask_in_tokenizer(folder, mark, tokenizer_class="PreTrainedTokenizerFast")
    LMTower.from_pretrained(str(folder), 16, context_length=CONTEXT)
    ours, plain = LMTokenizer.load(folder), LMTokenizer.load(lms["bert"])
    assert ours.fingerprint(CONTEXT) == plain.fingerprint(CONTEXT)
    assert not mark.exists()


def test_runs_and_exports_of_language_models_run_no_code(
    lm_settings: Any, mark: Path, tmp_path: Path, lms: dict[str, Path]
) -> None:
    train(replace(lm_settings, epochs=1, text=str(lms["gpt2"]), pooler="eos"))
    run_folder = RunFolder(lm_settings.output)
    exported = export_run(ExportSettings(run=run_folder.path, output=tmp_path / "merged")).folder
    for folder in (run_folder.tokenizer, exported):
        for file in folder.glob("*.json"):
            assert "clipglot-" not in file.read_text(), "a temporary folder is named"
            assert str(tmp_path) not in file.read_text()

    hostile = RunFolder(shutil.copytree(run_folder.path, tmp_path / "tokenizer"))
    ask_in_tokenizer(hostile.tokenizer, mark)
    refused(lambda: export_run(ExportSettings(run=hostile.path, output=tmp_path / "out")), mark)
    hostile = RunFolder(shutil.copytree(run_folder.path, tmp_path / "final"))
    final = json.loads((hostile.final / "config.json").read_text())
    final["lm"]["model"] |= {"model_type": "own", "auto_map": {"AutoModel": f"{hostile.final}--evil.OwnModel"}}
    edit_json(hostile.final / "config.json", **final)
    refused(lambda: load_final(hostile), mark)

    for place, ask in enumerate((ask_in_config, ask_in_tokenizer)):
        folder = shutil.copytree(exported, tmp_path / f"exported-{place}")
        ask(folder, mark)
        refused(lambda folder=folder: load_merged(folder), mark)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer_kwargs": {"cache_dir": "/tmp"}}, "'cache_dir': str, which is not passed on"),
        ({"tokenizer_kwargs": {"clean": {"a": 1}}}, "'clean': dict, which is not passed on"),
        ({"tokenizer_kwargs": ["clean"]}, "tokenizer_kwargs is no object"),
        ({"hf_model_config": {"auto_map": {}}}, "text_cfg has 'hf_model_config', which open_clip"),
        ({"hf_model_name": ["a"]}, "hf_model_name is no text"),
        ({"layers": 10**9}, "layers of text_cfg is 1000000000, expected at most"),
        ({"layers": "many"}, "layers of text_cfg is 'many'"),
        ({"vocab_size": 10**12}, "vocab_size of text_cfg is"),
    ],
)
def test_a_config_says_only_what_open_clip_knows(
    changes: dict[str, Any], message: str, tiny_clip: Path, mark: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    edit_text_cfg(folder, **changes)
    assert message in refused(lambda: load_image_tower(f"local-dir:{folder}", None), mark)


@pytest.mark.parametrize("name", ["hf-hub:stranger/vit", "local-dir:/tmp", "no_such_vit", ["test_vit"]])
def test_a_config_names_only_towers_of_timm(name: Any, tiny_clip: Path, mark: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= {"timm_model_name": name, "timm_model_pretrained": True}
    edit_json(folder / "open_clip_config.json", **config)
    assert "timm has no model" in refused(lambda: load_image_tower(f"local-dir:{folder}", None), mark)


def test_what_a_language_models_files_say_beside_its_form_is_dropped(
    lms: dict[str, Path], mark: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(lms["bert"], tmp_path / "lm")
    secret = tmp_path / "secret.txt"
    secret.write_text("[UNK]\n")
    edit_json(
        folder / "config.json",
        attn_implementation="stranger/kernel",
        _attn_implementation="stranger/kernel",
        kernel_config={"a": "stranger/kernel"},
        transformers_weights="../other.safetensors",
        num_labels=10**10,
        own_field={"auto_map": {}},
    )
    edit_json(folder / "tokenizer_config.json", vocab_file=str(secret), chat_template="{{ 0 }}", sp_model_kwargs={})
    edit_json(folder / "adapter_config.json", base_model_name_or_path="stranger/lm", peft_type="LORA")
    tower = LMTower.from_pretrained(str(folder), 16, context_length=CONTEXT)
    assert tower.config == replace(
        LMTower.from_pretrained(str(lms["bert"]), 16, context_length=CONTEXT).config, name="lm"
    )
    assert LMTokenizer.load(folder).fingerprint(CONTEXT) == LMTokenizer.load(lms["bert"]).fingerprint(CONTEXT)


def test_shards_lie_beside_their_index(mark: Path, tmp_path: Path) -> None:
    folder = save_tiny_lm(tmp_path / "lm")
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    edit_json(folder / "model.safetensors.index.json", metadata={}, weight_map={"a": "../other.safetensors"})
    message = refused(lambda: LMTower.from_pretrained(str(folder), 16), mark)
    assert "names ../other.safetensors" in message
    (folder / "model.safetensors.index.json").unlink()
    assert "no file model.safetensors" in refused(lambda: LMTower.from_pretrained(str(folder), 16), mark)
