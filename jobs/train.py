"""`clipglot train`: train a text tower on a cache.

The work is all of `distill.training`; here the command's function stands beside those of the other commands.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cache.read.cache import Cache
from ..distill.device import uses_gpu
from ..distill.errors import DistillError
from ..distill.recipes import AUTO, RECIPES, Recipe, chosen_settings, count_images, settings_of
from ..distill.training.outline import RunOutline
from ..distill.training.run_folder import RunFolder
from ..distill.training.train import TrainResult, train

__all__ = ["TrainResult", "defaults", "settings_to_resume", "told_by_lines", "train"]


def defaults(given: dict[str, Any], *, recipe: str | None = None, resume: bool = False) -> dict[str, Any]:
    """Settings that take the place of those that are not given, as for the command line.

    Args:
        given: settings from the user, with `cache` and `output`.
        recipe: its name, or "none"; None and "auto" choose by tower, number of images and device.
        resume: take the settings that the run was begun with.

    Raises:
        CacheError: no cache.
        DistillError: no such recipe, or one for other text towers.
    """
    if resume:
        return settings_to_resume(given["output"])
    if recipe not in (None, AUTO):
        known: dict[str, Recipe] = {name: name for name in RECIPES}
        if recipe != "none" and recipe not in known:
            raise DistillError(f"recipe {recipe!r}: known are {AUTO}, {', '.join(known)} and none")
        return {} if recipe == "none" else settings_of(known[recipe], given)
    num_images = count_images(Cache(given["cache"]).require_sealed(), given.get("captions", ()))
    return chosen_settings(num_images, given, on_gpu=uses_gpu(given.get("device", "auto")))


def told_by_lines(show: Callable[[str], None]) -> dict[str, Any]:
    """Callbacks of `train` that tell in lines of text what the run is, each epoch and each finding.

    Args:
        show: shows a line.
    """
    outlines: list[RunOutline] = []

    def show_outline(outline: RunOutline) -> None:
        outlines.append(outline)
        for name, value in outline.facts().items():
            show(f"{name}: {value}")

    return {
        "on_outline": show_outline,
        "on_epoch": lambda summary: show(summary.line(outlines[0])),
        "on_finding": lambda finding: show(f"{finding.title}: {finding.message}: {finding.advice}"),
    }


def settings_to_resume(output: Path) -> dict[str, Any]:
    """The settings that a run was begun with, as values of the fields of `TrainSettings`; empty without a run.

    Raises:
        DistillError: the run's description is damaged.
    """
    return RunFolder(output).settings_to_resume()
