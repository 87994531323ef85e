"""The trained tower of a finished run: `final/text.safetensors` and `final/config.json`."""

import json
from dataclasses import asdict
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..cache.files import whole_directory, write_whole
from ..encoders.lm import LMConfig, LMTower
from ..encoders.text import TextConfig, TextTower
from ..encoders.tower import StudentTower
from .errors import DistillError
from .run import Run, write_json


class Final(NamedTuple):
    """What a run ends with; `logit_bias` only after a sigmoid loss."""

    tower: StudentTower
    logit_scale: float
    logit_bias: float | None


def load_final(run: Run) -> Final:
    """The trained tower of a finished run, in evaluation mode on the CPU.

    Raises:
        DistillError: the run has not finished.
    """
    if not (run.final / "config.json").exists():
        run.provenance()  # raises first if there is no run at all
        raise DistillError(f"{run.path} has not finished: go on with `clipglot train … -o {run.path} --resume`")
    try:
        config = json.loads((run.final / "config.json").read_text(encoding="utf-8"))
        tower = _build(config)
        tower.load_state_dict(load_file(run.final / "text.safetensors"))
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise DistillError(
            f"{run.final} is damaged ({str(error).splitlines()[0]}): delete it and run `clipglot train … --resume`, "
            "which writes it again from the last checkpoint"
        ) from error
    return Final(tower.eval(), config["logit_scale"], config.get("logit_bias"))


def write_final(run: Run, final: Final) -> None:
    """Write the tower of a finished run; one that is there already stays as it is."""
    if run.final.exists():
        return
    tower = final.tower.plain()
    with whole_directory(run.final) as folder:
        tensors = {k: v.detach().cpu().contiguous() for k, v in tower.state_dict().items()}
        write_whole(folder / "text.safetensors", save(tensors))
        kind = "lm" if isinstance(tower, LMTower) else "text"
        scores = {"logit_scale": final.logit_scale, "logit_bias": final.logit_bias}
        write_json(folder / "config.json", {kind: asdict(tower.config)} | scores)


def _build(config: dict[str, Any]) -> StudentTower:
    return LMTower(LMConfig(**config["lm"])) if "lm" in config else TextTower(TextConfig(**config["text"]))
