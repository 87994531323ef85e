"""Contract of text towers: the tests of each kind inherit `TextTowerContract` and say how one is made."""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from clipglot.distill.train_settings import TrainSettings
from clipglot.distill.training.final import Weights, final_kind, load_final, write_final
from clipglot.distill.training.optimizer import make_optimizer
from clipglot.distill.training.run_folder import RunFolder
from clipglot.encoders.image_tower import load_image_tower
from clipglot.encoders.merged_clip import load_merged, write_merged
from clipglot.encoders.text_tower import TextTower, TowerSpec
from clipglot.encoders.text_towers import TEXT_TOWERS, stored_tower
from clipglot.encoders.tokenizer import TextTokenizer
from torch import Tensor, nn

CAPTIONS = [
    "красный круг над синим квадратом",
    "a red circle above a blue square",
    "",
    "桌上的猫",
    "шум " * 50,
    "a",
    "красный круг над синим квадратом",
]


class TextTowerContract:
    """What every text tower keeps.

    A test class gives two fixtures: `tower`, of 16 features, as it is trained (with dropout, frozen parts or LoRA,
    where its kind has them), and `tokenizer`. Where `tower` was made with options, it gives these as `options`, too.
    """

    @pytest.fixture
    def options(self, tower: TextTower) -> Any:
        return tower.options_type()

    @pytest.fixture
    def ids(self, tower: TextTower, tokenizer: TextTokenizer) -> list[list[int]]:
        return tokenizer.encode(CAPTIONS, tower.config.context_length)

    def test_the_table_has_its_kind(self, tower: TextTower, options: Any) -> None:
        assert TEXT_TOWERS[tower.kind] is type(tower)
        assert isinstance(tower.config, tower.config_type)
        assert isinstance(options, tower.options_type)

    def test_its_options_are_settings_of_train(self, tower: TextTower) -> None:
        settings = {field.name: field for field in fields(TrainSettings)}
        for option in fields(tower.options_type):
            assert option.default is not MISSING
            assert option.default == settings[option.name].default, option.name

    def test_packed_captions_give_the_features_and_gradients_of_one_at_a_time(
        self, tower: TextTower, ids: list[list[int]]
    ) -> None:
        tower = tower.double().eval()  # rounding leaves no room for a real difference
        together = tower.encode(ids)
        alone = torch.cat([tower.encode([caption]) for caption in ids])
        assert together.shape == (len(ids), tower.config.embed_dim)
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
        weights = torch.randn_like(together)
        for ours, theirs in zip(gradients(tower, together * weights), gradients(tower, alone * weights), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)

    def test_checkpointed_gradients_are_the_plain_ones(self, tower: TextTower, ids: list[list[int]]) -> None:
        tower.train()
        found = []
        for tower.grad_checkpointing in (False, True):
            torch.manual_seed(0)
            found.append(gradients(tower, tower.encode(ids).square()))
        for plain, checkpointed in zip(*found, strict=True):
            torch.testing.assert_close(plain, checkpointed)

    def test_it_knows_whether_it_has_dropout(self, tower: TextTower, ids: list[list[int]]) -> None:
        first, second = tower.train().encode(ids), tower.encode(ids)
        assert torch.equal(first, second) != tower.has_dropout
        assert torch.equal(tower.eval().encode(ids), tower.encode(ids))

    def test_learning_rate_groups_hold_every_trained_parameter_once(self, tower: TextTower) -> None:
        trained = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
        assert tower.learning_rate_factors(pretrained=0.5, layer_decay=0.9).keys() == trained
        rates = {"lr": 1e-3, "lm_lr": 1e-4, "layer_decay": 0.9}
        groups = make_optimizer(tower, nn.Module(), **rates, weight_decay=0.1, beta2=0.98).param_groups
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(grouped) == sorted(id(tower.get_parameter(name)) for name in trained)

    def test_a_stored_tower_loads_with_equal_tensors_and_configuration(self, tower: TextTower, tmp_path: Path) -> None:
        run = RunFolder(tmp_path)
        write_final(run.final, tower, Weights(1, tower.tensors(), 12.5, None))
        stored = json.loads((run.final / "config.json").read_text())
        assert [key for key in stored if key in TEXT_TOWERS] == [tower.kind]
        assert stored_tower(stored) is final_kind(run) is type(tower)
        loaded = load_final(run)
        assert (loaded.logit_scale, loaded.logit_bias) == (12.5, None)
        assert loaded.tower.config == tower.config
        expected = tower.tensors()
        tensors = loaded.tower.state_dict()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)

    def test_an_export_loads_as_its_model_card_says(
        self, tower: TextTower, tokenizer: TextTokenizer, ids: list[list[int]], tiny_clip: Path, tmp_path: Path
    ) -> None:
        assert all(name.startswith("text.") for name in tower.tensors())
        image_tower = load_image_tower(f"local-dir:{tiny_clip}", None)
        write_merged(tmp_path, image_tower, tower, 10.0, None, tokenizer, {"made by": "a test"})
        with torch.inference_mode():
            expected = tower.eval().encode(ids)
        features = load_merged(tmp_path).encode_texts(CAPTIONS, raw=True)
        torch.testing.assert_close(torch.from_numpy(features), expected, rtol=1e-4, atol=1e-5)
        assert len(tower.config.describe().splitlines()) == 1
        code = tower.config.loading_code(str(tmp_path))
        assert code in tower.config.loading_guide(str(tmp_path))
        features = features_by(code)
        torch.testing.assert_close(features / features.norm(dim=1, keepdim=True), unit(expected), rtol=0, atol=1e-5)

    def test_it_goes_on_in_another_run_with_what_it_has_learned(
        self, tower: TextTower, tokenizer: TextTokenizer, options: Any, ids: list[list[int]]
    ) -> None:
        config = tower.config
        spec = TowerSpec(text="run", embed_dim=config.embed_dim, context_length=config.context_length)
        with torch.inference_mode():
            expected = tower.eval().encode(ids)
            stored = tower.from_plain(config.to_plain())
            stored.load_state_dict(tower.tensors())
            following = stored.continued(spec, options, tokenizer, tokenizer)
            torch.testing.assert_close(following.eval().encode(ids), expected, rtol=1e-4, atol=1e-5)


def gradients(tower: TextTower, values: Tensor) -> list[Tensor]:
    """Gradients of a sum by every trained parameter that it depends on."""
    parameters = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(values.sum(), parameters, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True)


def features_by(code: str) -> Tensor:
    """Features of `CAPTIONS` by the lines of a model card."""
    names: dict[str, Any] = {}
    exec(code, names)
    with torch.inference_mode():
        if "clip" in names:
            return torch.from_numpy(names["clip"].encode_texts(CAPTIONS))
        return names["model"].eval().encode_text(names["tokenizer"](CAPTIONS))
