"""Recipes: settings of `clipglot train` for common cases, found by measurement.

The study is benchmarks/recipes_cpu_2026-11.md; it also says what could not be measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..cache.format import Status
from .errors import DistillError

if TYPE_CHECKING:
    from ..cache.read.cache import Cache

Recipe = Literal["few", "many", "lm", "lora", "frozen"]
AUTO, NONE = "auto", "none"  # what else `--recipe` takes
FOR_LANGUAGE_MODELS: tuple[Recipe, ...] = ("lm", "lora", "frozen")
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
    # A language model, or the CLIP's own text tower, by LoRA, which forgets less.
    "lora": {"warm_start": "ridge", "lora_rank": 8, "batch_size": 128, "lr": 1e-3, "epochs": 8},
    # A head on the features of a frozen language model, which are computed once.
    "frozen": {"warm_start": "ridge", "train_layers": 0, "batch_size": 256, "lr": 1e-3, "epochs": 20},
}


FEW_IMAGES = 20_000
"""Images up to which a scratch tower takes the recipe `few` by itself (docs/decisions/022-recipes-by-themselves.md)."""
RUN = "run.json"  # of a run folder
_OF_LANGUAGE_MODELS = {"train_layers", "freeze_embeddings", "lora_rank", "lm_lr", "layer_decay", "token_dropout"}


@dataclass(frozen=True, slots=True)
class Choice:
    """A recipe that a run takes by itself, and the reason in a few words."""

    recipe: Recipe
    reason: str


def choose_recipe(num_images: int, text: str, *, on_gpu: bool) -> Choice | None:
    """Recipe for a tower, a number of images and a device; None where nothing was measured.

    Args:
        num_images: as of `count_images`.
        text: what `--text` says.
        on_gpu: whether the run trains on a GPU.

    >>> choose_recipe(552, "scratch", on_gpu=False)
    Choice(recipe='few', reason='552 images')
    >>> choose_recipe(10**6, "intfloat/multilingual-e5-small", on_gpu=False)
    Choice(recipe='frozen', reason='a language model on the CPU, whose features are computed once')
    """
    images = f"{num_images:,} images"
    if text == "clip" or Path(text, RUN).is_file():  # it has learned already
        return None
    if text == "scratch":
        return Choice("few", images) if num_images <= FEW_IMAGES else None
    if not on_gpu:
        return Choice("frozen", "a language model on the CPU, whose features are computed once")
    return Choice("lora" if num_images <= FEW_IMAGES else "lm", f"a language model on a GPU and {images}")


def count_images(cache: "Cache", captions: Sequence[str]) -> int:
    """Embedded images of a cache; with names of caption sets, those that have a caption in one of them.

    Raises:
        CacheError: there is no such set, or the cache is damaged.
    """
    if not captions:
        return cache.info.counts.get(Status.EMBEDDED.label, 0)
    import numpy as np

    from ..cache.read.caption_sets import with_captions

    rows = np.unique(with_captions(cache, captions).caption_image())
    return int((cache.status()[rows] == Status.EMBEDDED).sum())


def kept_away_by(recipe: Recipe, given: Mapping[str, Any]) -> list[str]:
    """Given settings that the recipe would decide. With any of them it is not taken: it was measured as a whole.

    >>> kept_away_by("few", {"epochs": 5, "val": "val.zarr"})
    ['epochs']
    """
    decided = RECIPES[recipe].keys() | (_OF_LANGUAGE_MODELS if recipe in FOR_LANGUAGE_MODELS else set())
    return [name for name in given if name in decided]


def settings_of(recipe: Recipe, given: dict[str, Any]) -> dict[str, Any]:
    """Settings of a recipe that the user did not give.

    Args:
        recipe: its name.
        given: settings from the user.

    Raises:
        DistillError: a recipe for language models without one, or one for scratch towers with another tower.
    """
    text = given.get("text", "scratch")
    has_learned = recipe == "lora" and (text == "clip" or Path(text, RUN).is_file())
    if recipe in FOR_LANGUAGE_MODELS and text in ("scratch", "clip") and not has_learned:
        raise DistillError(f"--recipe {recipe} is for language models: pass --text FOLDER")
    if recipe in ("few", "many") and text != "scratch":
        raise DistillError(
            f"--recipe {recipe} is for --text scratch: pass --recipe lm, lora or frozen for a language model"
        )
    settings = {name: value for name, value in RECIPES[recipe].items() if name not in given}
    if has_learned:  # a warm start would overwrite it
        settings.pop("warm_start", None)
    return settings


def chosen_settings(num_images: int, given: dict[str, Any], *, on_gpu: bool) -> dict[str, Any]:
    """Settings of the recipe that a run takes by itself, no batch above what the cache has; empty without a recipe.

    Args:
        num_images: embedded images of the cache.
        given: settings from the user.
        on_gpu: whether the run trains on a GPU.
    """
    choice = choose_recipe(num_images, str(given.get("text", "scratch")), on_gpu=on_gpu)
    if choice is None or kept_away_by(choice.recipe, given):
        return {}
    settings = settings_of(choice.recipe, given)
    return settings | {"batch_size": max(1, min(settings["batch_size"], num_images))}
