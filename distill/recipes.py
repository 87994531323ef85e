"""Recipes: settings of `clipglot train` for common cases, found by measurement.

The study is benchmarks/recipes_cpu_2026-11.md; it also says what could not be measured.
"""

from collections.abc import Mapping
from typing import Any, Literal

from .errors import DistillError

Recipe = Literal["few", "many", "lm", "lora", "frozen"]
RECIPES: dict[Recipe, dict[str, Any]] = {
    # A scratch tower on a few thousand images: begun as a bag of tokens fitted in closed form, small, with dropout.
    "few": {
        "warm_start": "ridge",
        "width": 256,
        "layers": 2,
        "heads": 4,
        "context_length": 48,
        "vocab_size": 4_096,
        "dropout": 0.3,
        "batch_size": 256,
        "lr": 4e-4,
        "epochs": 20,
    },
    # A scratch tower on hundreds of thousands of images or more: CLIP's own text tower and rates.
    "many": {"layers": 12, "batch_size": 4_096, "lr": 5e-4, "weight_decay": 0.2, "vocab_size": 32_768},
    # A language model, trained whole; its head fitted in closed form.
    "lm": {"warm_start": "ridge", "batch_size": 128, "lr": 3e-4, "lm_lr": 5e-5, "epochs": 8},
    # A language model by LoRA, which forgets less.
    "lora": {"warm_start": "ridge", "lora_rank": 8, "batch_size": 128, "lr": 1e-3, "epochs": 8},
    # A head on the features of a frozen language model, which are computed once.
    "frozen": {"warm_start": "ridge", "train_layers": 0, "batch_size": 256, "lr": 1e-3, "epochs": 20},
}


FEW_IMAGES = 20_000
"""Images up to which a scratch tower takes the recipe `few` by itself (docs/decisions/022-recipes-by-themselves.md)."""


def recipe_for(num_images: int, given: Mapping[str, Any]) -> Recipe | None:
    """Recipe of a run without `--recipe`: `few` for a scratch tower on few images, if no setting of it is given.

    Args:
        num_images: embedded images of the cache.
        given: settings from the user.

    >>> recipe_for(552, {"epochs": 5}) is None, recipe_for(552, {"val": "val.zarr"}), recipe_for(10**6, {}) is None
    (True, 'few', True)
    """
    by_hand = given.get("text", "scratch") != "scratch" or RECIPES["few"].keys() & given.keys()
    return None if by_hand or num_images > FEW_IMAGES else "few"


def settings_of(recipe: Recipe, given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a recipe that the user did not give.

    Args:
        recipe: its name.
        given: settings from the user.

    Raises:
        DistillError: a recipe for language models without one, or one for scratch towers with another tower.
    """
    text = given.get("text", "scratch")
    if recipe in ("lm", "lora", "frozen") and text in ("scratch", "clip"):
        raise DistillError(f"--recipe {recipe} is for language models: pass --text FOLDER")
    if recipe in ("few", "many") and text != "scratch":
        raise DistillError(
            f"--recipe {recipe} is for --text scratch: pass --recipe lm, lora or frozen for a language model"
        )
    return {name: value for name, value in RECIPES[recipe].items() if name not in given}


def settings_by_size(num_images: int, given: dict[str, Any]) -> dict[str, Any] | None:
    """Settings of the recipe for a number of images, none of them above what the cache has; None without a recipe.

    Args:
        num_images: embedded images of the cache.
        given: settings from the user.
    """
    recipe = recipe_for(num_images, given)
    if recipe is None:
        return None
    settings = settings_of(recipe, given)
    return settings | {"batch_size": max(1, min(settings["batch_size"], num_images))}
