"""Run folders from a stranger: each is refused in our own words, in bounded memory and without a hang."""

import json
import shutil
from pathlib import Path

import pytest
from clipglot.distill.errors import DistillError
from clipglot.distill.training.final import _require_fitting
from clipglot.distill.training.run_folder import RunFolder
from clipglot.encoders.text_lm import LMConfig, LMTower
from safetensors.torch import save_file
from support.bounded_process import outcomes
from support.foreign_runs import CHANGES
from support.launcher import Launcher


def test_a_foreign_run_is_refused(tiny_run: Path, launcher: Launcher) -> None:
    cases = [[name, str(tiny_run)] for name in CHANGES]
    found = dict(zip(CHANGES, outcomes(launcher, "support.foreign_runs:read", cases), strict=True))
    assert {change: outcome for change, outcome in found.items() if not outcome.startswith("DistillError: ")} == {}


def test_the_error_names_the_line(tiny_run: Path, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    num = len(run.metrics())
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write("[]\n")
    with pytest.raises(DistillError, match=rf"line {num + 1} of .*metrics.jsonl .*: delete that line"):
        run.last_validation()


def test_figures_that_are_no_numbers_are_read_as_none(tiny_run: Path, tmp_path: Path) -> None:
    run = RunFolder(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "step": 3, "loss": NaN, "grad_norm": Infinity}\n')
    assert run.metrics()[-1] == {"kind": "step", "step": 3, "loss": None, "grad_norm": None}
    run.rewind_metrics(3)
    for line in (run.path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_bounds_that_name_layers_are_no_layers(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "vocab_size": 300}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_window_layers": 28}
    config = LMConfig(
        embed_dim=6, name="lm", model={"model_type": "qwen2"} | shape, pooler="eos", head="linear", context_length=24
    )
    weights = tmp_path / "text.safetensors"
    save_file(LMTower(config).tensors(), weights)
    _require_fitting(LMTower, config.to_plain(), weights)
    plain = config.to_plain()
    plain["model"] = plain["model"] | {"num_hidden_layers": 1_000}
    with pytest.raises(ValueError, match="1,000 layers in"):
        _require_fitting(LMTower, plain, weights)
