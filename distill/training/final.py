"""The trained tower of a finished run: `final/text.safetensors` and `final/config.json`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ...cache.storage.atomic import atomic_directory, atomic_write
from ...encoders.text_lm import LMConfig, LMTower
from ...encoders.text_scratch import ScratchConfig, ScratchTower
from ...encoders.text_tower import TextTower
from ..errors import DistillError
from .run_folder import RunFolder, write_json


class Final(NamedTuple):
    """What a run ends with; `logit_bias` only after a sigmoid loss."""

    tower: TextTower
    logit_scale: float
    logit_bias: float | None


def load_final(run: RunFolder) -> Final:
    """The trained tower of a finished run, in evaluation mode on the CPU.

    Raises:
        DistillError: the run has not finished, or what it ended with is damaged.
    """
    with _finished(run):
        config = _config(run)
        tower = _build(config)
        tower.load_state_dict(load_file(run.final / "text.safetensors"))
        return Final(tower.eval(), config["logit_scale"], config.get("logit_bias"))


def ends_with_lm(run: RunFolder) -> bool:
    """Whether the tower of a finished run is a language model; its weights are not read.

    Raises:
        DistillError: as `load_final`.
    """
    with _finished(run):
        return "lm" in _config(run)


def write_final(run: RunFolder, final: Final) -> None:
    """Write the tower of a finished run; one that is there already stays as it is."""
    if run.final.exists():
        return
    tower = final.tower.plain()
    with atomic_directory(run.final) as folder:
        tensors = {k: v.detach().cpu().contiguous() for k, v in tower.state_dict().items()}
        atomic_write(folder / "text.safetensors", save(tensors))
        kind = "lm" if isinstance(tower, LMTower) else "text"
        scores = {"logit_scale": final.logit_scale, "logit_bias": final.logit_bias}
        write_json(folder / "config.json", {kind: asdict(tower.config)} | scores)


@contextmanager
def _finished(run: RunFolder) -> Iterator[None]:
    """Read what a run ended with inside the block: a run that has not ended, or damage, is named."""
    if not (run.final / "config.json").exists():
        run.provenance()  # raises first if there is no run at all
        raise DistillError(f"{run.path} has not finished: go on with `clipglot train … -o {run.path} --resume`")
    try:
        yield
    except (SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise DistillError(
            f"{run.final} is damaged ({str(error).splitlines()[0]}): delete it and run `clipglot train … --resume`, "
            "which writes it again from the last checkpoint"
        ) from error


def _config(run: RunFolder) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((run.final / "config.json").read_text(encoding="utf-8"))
    return config


def _build(config: dict[str, Any]) -> TextTower:
    return LMTower(LMConfig(**config["lm"])) if "lm" in config else ScratchTower(ScratchConfig(**config["text"]))
