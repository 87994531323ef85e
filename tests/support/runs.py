"""Runs on a tiny cache: their settings, and how to stop them."""

import os
import signal
from pathlib import Path
from typing import Any

from clipglot.cache.progress import OnProgress, Progress
from clipglot.distill.train_settings import TrainSettings


def settings(cache: Path, run: Path, **changes: Any) -> TrainSettings:
    small: dict[str, Any] = {"width": 32, "layers": 1, "heads": 2, "vocab_size": 300, "context_length": 16}
    pace: dict[str, Any] = {"epochs": 4, "batch_size": 8, "log_every": 1, "checkpoint_every": 7, "device": "cpu"}
    return TrainSettings(cache=cache, output=run, **small | pace | changes)


def stop_at(step: int, number: int = signal.SIGINT) -> OnProgress:
    """A listener that sends this process a signal, as Ctrl-C does, after some step."""

    def listen(progress: Progress) -> None:
        if progress.stage == "train" and progress.done == step:
            os.kill(os.getpid(), number)

    return listen
