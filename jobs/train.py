"""`clipglot train`: train a text tower on a cache.

The work is all of `distill.training`; here the command's function stands beside those of the other commands.
"""

from pathlib import Path
from typing import Any

from ..distill.training.run_folder import RunFolder
from ..distill.training.train import TrainResult, train

__all__ = ["TrainResult", "settings_to_resume", "train"]


def settings_to_resume(output: Path) -> dict[str, Any]:
    """The settings that a run was begun with, as values of the fields of `TrainSettings`; empty without a run.

    Raises:
        DistillError: the run's description is damaged.
    """
    return RunFolder(output).settings_to_resume()
