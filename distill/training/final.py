"""Trained towers of a finished run, the last one in `final/` and that of the best validation in `best/`.

Each folder has `text.safetensors` and `config.json`.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ...cache.storage.atomic import atomic_directory, atomic_write
from ...cache.storage.regular import open_regular, read_regular
from ...encoders.text_tower import TextTower
from ...encoders.text_towers import stored_tower
from ..errors import DistillError
from .run_folder import RunFolder, write_json
from .student import Student

_LAYERS = re.compile(r"num_\w*layers|n_layers?|(encoder_|decoder_)?layers")
Which = Literal["best", "last"]
"""Weights of a run: those of the best validation, or those after the last step."""


class Final(NamedTuple):
    """A trained tower and the scale of its cosines; a bias only after a sigmoid loss."""

    tower: TextTower
    logit_scale: float
    logit_bias: float | None


@dataclass(frozen=True)
class Weights:
    """Weights of a tower after some step, on the CPU.

    Attributes:
        step: steps done.
        tensors: of the plain tower, by name; of the part that learns, where a frozen model is none of it.
        logit_scale: factor on its cosines.
        logit_bias: added to them after a sigmoid loss.
    """

    step: int
    tensors: dict[str, Tensor]
    logit_scale: float
    logit_bias: float | None

    @classmethod
    def of(cls, student: Student, step: int) -> Self:
        """Copy of what a student validates and exports."""
        tensors = {name: tensor.clone() for name, tensor in student.evaluated.tensors().items()}
        return cls(step, tensors, student.logit_scale, student.logit_bias)


def load_final(run: RunFolder, which: Which = "last") -> Final:
    """A trained tower of a finished run, in evaluation mode on the CPU.

    Raises:
        DistillError: the run has not finished, it has no such tower, or the tower is damaged.
    """
    folder = _folder(run, which)
    with _readable(folder):
        config = _read_config(folder)
        kind = stored_tower(config)
        _require_fitting(kind, config[kind.kind], folder / "text.safetensors")
        tower = kind.from_plain(config[kind.kind])
        tower.load_state_dict(load_file(folder / "text.safetensors"))
        return Final(tower.eval(), config["logit_scale"], config.get("logit_bias"))


def final_kind(run: RunFolder) -> type[TextTower]:
    """Kind of the trained tower of a finished run; its weights are not read.

    Raises:
        DistillError: as `load_final`.
    """
    folder = _folder(run, "last")
    with _readable(folder):
        return stored_tower(_read_config(folder))


def final_step(run: RunFolder, which: Which = "last") -> int | None:
    """Step after which the weights of a finished run were taken; None in runs that did not write it down.

    Raises:
        DistillError: as `load_final`.
    """
    folder = _folder(run, which)
    with _readable(folder):
        step: int | None = _read_config(folder).get("step")
        return step


def write_final(folder: Path, tower: TextTower, weights: Weights) -> None:
    """Write a trained tower of a finished run, unless it is written already.

    Args:
        folder: `final` or `best` of the run.
        tower: whose kind and configuration are written.
        weights: of such a tower.
    """
    if folder.exists():
        return
    with atomic_directory(folder) as partial:
        frozen = {} if tower.whole is tower else tower.whole.tensors()
        atomic_write(partial / "text.safetensors", save(frozen | weights.tensors))
        config = {tower.kind: tower.config.to_plain()}
        scores = {"logit_scale": weights.logit_scale, "logit_bias": weights.logit_bias}
        write_json(partial / "config.json", config | scores | {"step": weights.step})


def _folder(run: RunFolder, which: Which) -> Path:
    """Folder of a trained tower.

    Raises:
        DistillError: the run has not finished, or has no such tower.
    """
    if not (run.final / "config.json").exists():
        run.provenance()  # raises first if there is no run at all
        raise DistillError(f"{run.path} has not finished: go on with `clipglot train … -o {run.path} --resume`")
    if which == "best" and not run.best.exists():
        raise DistillError(
            f"{run.path} has kept no best weights: it was trained without --val, or begun by a version that kept none: "
            "export the last ones with --step last"
        )
    return run.best if which == "best" else run.final


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Read the folder of a trained tower inside the block; if it is damaged, the error says so."""
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DistillError(
            f"{folder} is damaged ({reason}): delete it and run `clipglot train … --resume`, "
            "which writes it again from the last checkpoint"
        ) from error


def _require_fitting(kind: type[TextTower], config: Any, weights: Path) -> None:
    """Raise unless a configuration describes a tower of about the size of its weights, before memory is taken for it.

    Raises:
        OSError, ValueError: it does not, or the weights are no regular file.
    """
    os.close(open_regular(weights))
    with safe_open(weights, "pt") as stored:
        num_tensors = len(stored.keys())
    # An encoder-decoder's config also names layers of the decoder, which is not kept; others lie far apart.
    if (num_layers := _most_layers(config)) > max(4 * num_tensors, 64):
        raise ValueError(f"{num_layers:,} layers in {num_tensors:,} tensors")
    with torch.device("meta"):  # which takes no memory
        num_values = sum(tensor.numel() for tensor in kind.from_plain(config).state_dict().values())
    if num_values > weights.stat().st_size:
        raise ValueError(f"{num_values:,} values in weights of {weights.stat().st_size:,} bytes")


def _most_layers(config: Any) -> int:
    """The largest number of layers that a configuration names; not bounds such as Qwen2's max_window_layers."""
    if not isinstance(config, dict):
        return 0
    named = (value for name, value in config.items() if _LAYERS.fullmatch(name) and isinstance(value, int))
    return max((0, *named, *map(_most_layers, config.values())))


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(read_regular(folder / "config.json"))
    return config
