"""Which recipe a run takes by itself."""

from pathlib import Path

import pytest
from clipglot.distill.recipes import FEW_IMAGES, RECIPES, choose_recipe, chosen_settings, kept_away_by, settings_of


@pytest.mark.parametrize(
    ("num_images", "text", "on_gpu", "recipe"),
    [
        (FEW_IMAGES, "scratch", True, "few"),
        (FEW_IMAGES + 1, "scratch", True, None),
        (100, "clip", False, None),
        (100, "model", False, "frozen"),
        (10**7, "model", False, "frozen"),
        (100, "model", True, "lora"),
        (FEW_IMAGES + 1, "model", True, "lm"),
    ],
)
def test_recipe_by_tower_images_and_device(num_images: int, text: str, on_gpu: bool, recipe: str | None) -> None:
    choice = choose_recipe(num_images, text, on_gpu=on_gpu)
    assert (choice and choice.recipe) == recipe


def test_a_run_to_go_on_from_keeps_its_own_settings(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    assert choose_recipe(100, str(tmp_path), on_gpu=False) is None


def test_a_setting_of_the_recipe_keeps_it_away() -> None:
    assert chosen_settings(1000, {"text": "model"}, on_gpu=False)["train_layers"] == 0
    for name in ("lr", "lora_rank", "token_dropout"):
        assert kept_away_by("frozen", {"text": "model", name: 1}) == [name]
        assert chosen_settings(1000, {"text": "model", name: 1}, on_gpu=False) == {}
    assert chosen_settings(10, {}, on_gpu=False)["batch_size"] == 10


def test_lora_of_a_tower_that_has_learned_has_no_warm_start(tmp_path: Path) -> None:
    assert settings_of("lora", {"text": "model"})["warm_start"] == "ridge"
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    for text in ("clip", str(tmp_path)):
        assert settings_of("lora", {"text": text}).keys() == RECIPES["lora"].keys() - {"warm_start"}
