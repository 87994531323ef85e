"""Early check of the name of an image tower: a mistyped folder is found before a source is read."""

import os
from pathlib import Path

from ...cache.location import did_you_mean
from ...distill.settings import require
from ...encoders.loading.model_names import LOCAL_PREFIX


def require_tower_folder(model: str) -> None:
    """Refuse `local-dir:PATH` where nothing is at that path.

    Raises:
        DistillError: nothing is there; the most similar path is named.
    """
    folder = Path(model.removeprefix(LOCAL_PREFIX))
    require(
        not model.startswith(LOCAL_PREFIX) or os.path.lexists(folder),
        f"--model {model}: no such folder{did_you_mean(folder)}",
    )
