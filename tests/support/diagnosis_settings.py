"""Settings of the runs that are diagnosed."""

from pathlib import Path
from typing import Any

from clipglot.distill.train_settings import TrainSettings


def settings(cache: Path, run: Path, **changes: Any) -> TrainSettings:
    small: dict[str, Any] = {"width": 64, "layers": 1, "heads": 4, "context_length": 40, "vocab_size": 400}
    pace: dict[str, Any] = {"batch_size": 64, "epochs": 16, "lr": 3e-3, "log_every": 2, "device": "cpu"}
    return TrainSettings(cache=cache, output=run, **small | pace | changes)
