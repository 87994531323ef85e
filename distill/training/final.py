"""The trained tower of a finished run: `final/text.safetensors` and `final/config.json`."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from ...cache.storage.atomic import atomic_directory, atomic_write
from ...cache.storage.regular import open_regular, read_regular
from ...encoders.text_tower import TextTower
from ...encoders.text_towers import stored_tower
from ..errors import DistillError
from .run_folder import RunFolder, write_json


class Final(NamedTuple):
    """The trained tower and the scale of its cosines; a bias only after a sigmoid loss."""

    tower: TextTower
    logit_scale: float
    logit_bias: float | None


def load_final(run: RunFolder) -> Final:
    """The trained tower of a finished run, in evaluation mode on the CPU.

    Raises:
        DistillError: the run has not finished, or its final tower is damaged.
    """
    with _finished(run):
        config = _read_config(run)
        kind = stored_tower(config)
        _require_fitting(kind, config[kind.kind], run.final / "text.safetensors")
        tower = kind.from_plain(config[kind.kind])
        tower.load_state_dict(load_file(run.final / "text.safetensors"))
        return Final(tower.eval(), config["logit_scale"], config.get("logit_bias"))


def final_kind(run: RunFolder) -> type[TextTower]:
    """Kind of the trained tower of a finished run; its weights are not read.

    Raises:
        DistillError: as `load_final`.
    """
    with _finished(run):
        return stored_tower(_read_config(run))


def write_final(run: RunFolder, final: Final) -> None:
    """Write the trained tower of a finished run, unless it is written already."""
    if run.final.exists():
        return
    with run.writing(), atomic_directory(run.final) as folder:
        atomic_write(folder / "text.safetensors", save(final.tower.tensors()))
        config = {final.tower.kind: final.tower.config.to_plain()}
        scores = {"logit_scale": final.logit_scale, "logit_bias": final.logit_bias}
        write_json(folder / "config.json", config | scores)


@contextmanager
def _finished(run: RunFolder) -> Iterator[None]:
    """Read the final folder of a run inside the block; if it is absent or damaged, the error says so."""
    if not (run.final / "config.json").exists():
        run.provenance()  # raises first if there is no run at all
        raise DistillError(f"{run.path} has not finished: go on with `clipglot train … -o {run.path} --resume`")
    try:
        yield
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DistillError(
            f"{run.final} is damaged ({reason}): delete it and run `clipglot train … --resume`, "
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
    if (num_layers := _most_layers(config)) > num_tensors:
        raise ValueError(f"{num_layers:,} layers in {num_tensors:,} tensors")
    with torch.device("meta"):  # which takes no memory
        num_values = sum(tensor.numel() for tensor in kind.from_plain(config).state_dict().values())
    if num_values > weights.stat().st_size:
        raise ValueError(f"{num_values:,} values in weights of {weights.stat().st_size:,} bytes")


def _most_layers(config: Any) -> int:
    """The largest number of layers that a configuration names."""
    if not isinstance(config, dict):
        return 0
    named = (value for name, value in config.items() if "layers" in name and isinstance(value, int))
    return max((0, *named, *map(_most_layers, config.values())))


def _read_config(run: RunFolder) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(read_regular(run.final / "config.json"))
    return config
