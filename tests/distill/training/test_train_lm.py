"""Training language models: frozen parts, LoRA, learning rates, resuming, and warm starts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clipglot.cache.read.cache import Cache
from clipglot.distill.errors import DistillError
from clipglot.distill.recipes import settings_of
from clipglot.distill.training.build_tower import build_tower
from clipglot.distill.training.final import load_final
from clipglot.distill.training.optimizer import make_optimizer
from clipglot.distill.training.run_folder import RunFolder
from clipglot.distill.training.train import train
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.text_lm import LMTower
from clipglot.encoders.tokenizer_lm import LMTokenizer
from support.runs import stop_at
from support.tiny_lms import CAPTIONS, CONTEXT, RELATIVE, save_tiny_lm


def changed(before: LMTower, after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters that are not bit-identical."""
    return {name for name, p in before.named_parameters() if not torch.equal(p, after[name])}


@pytest.mark.parametrize(
    ("freezing", "trained"),
    [
        ({"train_layers": 0}, ("text.proj",)),
        ({"train_layers": 1}, ("text.proj", "layer.2.")),
        ({"freeze_embeddings": True}, ("text.proj", "layer.", "position", "token_type", "embeddings.LayerNorm")),
        ({}, ("text.",)),
    ],
    ids=["head", "last layer", "no word embeddings", "all"],
)
def test_frozen_parts_are_bit_identical_after_training(
    lm_settings: Any, tiny_cache: Path, freezing: dict[str, Any], trained: tuple[str, ...]
) -> None:
    given = replace(lm_settings, weight_decay=0.1, **freezing)
    before = build_tower(given, Cache(tiny_cache).info.encoder, LMTokenizer.load(given.text))
    assert isinstance(before, LMTower)
    train(given)
    after = dict(load_final(RunFolder(given.output)).tower.named_parameters())
    expected = {name for name in after if any(part in name for part in trained)}
    found = changed(before, after)
    # A key's bias moves all scores of a query alike, so it has no gradient but by rounding.
    assert {n for n in expected - found if "key.bias" not in n} == set()
    assert found <= expected


@pytest.mark.parametrize("family", RELATIVE)
def test_tables_of_relative_positions_count_as_input_of_the_blocks(
    family: str, lm_settings: Any, tiny_cache: Path, tmp_path: Path
) -> None:
    folder = save_tiny_lm(tmp_path / family, family)
    given = replace(lm_settings, text=str(folder), train_layers=1, lm_lr=1e-2)
    encoder, tokenizer = Cache(tiny_cache).info.encoder, LMTokenizer.load(folder)
    whole = build_tower(replace(given, train_layers=None), encoder, tokenizer)
    assert isinstance(whole, LMTower)
    tables = [
        name for name, _ in whole.named_parameters() if "rel_embeddings" in name or "relative_attention_bias" in name
    ]
    assert tables
    # By gradients: what moves the features while the last block's output is held fixed comes after the blocks.
    factors = whole.learning_rate_factors(pretrained=0.1, layer_decay=0.5)
    hook = whole.layers[-1].register_forward_hook(
        lambda module, inputs, output: (
            output.detach() if isinstance(output, torch.Tensor) else (output[0].detach(), *output[1:])
        )
    )
    whole.eval().encode(tokenizer.encode(CAPTIONS, CONTEXT)).sum().backward()
    hook.remove()
    for name, parameter in whole.named_parameters():
        block = next((i for i in range(3) if f"layer.{i}." in name), None)
        if name.startswith("text.proj"):
            assert factors[name] == 1
        elif block is not None:
            assert factors[name] == pytest.approx(0.1 * 0.5 ** (3 - block))
        else:
            assert parameter.grad is None
            assert factors[name] == pytest.approx(0.1 * 0.5**4), name
    before = build_tower(given, encoder, tokenizer)
    assert isinstance(before, LMTower)
    assert {n for n, p in before.named_parameters() if p.requires_grad and not n.startswith(("text.proj",))} == {
        n for n, _ in before.named_parameters() if "layer.2." in n
    }
    train(given)
    after = dict(load_final(RunFolder(given.output)).tower.named_parameters())
    found = changed(before, after)
    assert "text.proj.weight" in found
    assert all("layer.2." in name for name in found - {"text.proj.weight"})


@pytest.mark.parametrize(("family", "positions"), [("bert", 40), ("roberta", 39), ("mt5", 77)])
def test_the_default_context_length_is_that_of_a_model_with_fewer_positions(
    family: str, positions: int, lm_settings: Any, lms: dict[str, Path]
) -> None:
    given = replace(lm_settings, text=str(lms[family]), context_length=77, epochs=1)
    assert train(given).complete
    assert load_final(RunFolder(given.output)).tower.config.context_length == positions
    if positions < 77:
        with pytest.raises(EncoderError, match=rf"--context-length 50: .* {positions} tokens"):
            train(replace(given, output=given.output.with_name("long"), context_length=50))


def test_lora_trains_few_parameters_and_merging_keeps_the_features(lm_settings: Any, tiny_cache: Path) -> None:
    given = replace(lm_settings, lora_rank=2)
    tokenizer = LMTokenizer.load(given.text)
    plain = build_tower(replace(given, lora_rank=0), Cache(tiny_cache).info.encoder, tokenizer)
    tower = build_tower(given, Cache(tiny_cache).info.encoder, tokenizer)
    assert isinstance(tower, LMTower)
    ids = tokenizer.encode(CAPTIONS, CONTEXT)
    with torch.inference_mode():
        assert torch.equal(tower.eval().encode(ids), plain.eval().encode(ids)), "it begins with a change of nothing"
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("text.proj") for name in trained)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        merged = tower.plain()
        assert set(merged.state_dict()) == set(plain.state_dict())
        torch.testing.assert_close(merged.encode(ids), tower.encode(ids), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(merged.encode(ids), plain.encode(ids), atol=1e-2)
    assert any("lora_" in name for name, _ in tower.named_parameters()), "the tower itself goes on as it was"


def test_lora_changes_only_its_target_matrices(lm_settings: Any, tiny_cache: Path) -> None:
    given = replace(lm_settings, lora_rank=2, lora_targets=("query", "value"), lr=1e-2)
    before = build_tower(
        replace(given, lora_rank=0, lora_targets=()), Cache(tiny_cache).info.encoder, LMTokenizer.load(given.text)
    )
    assert isinstance(before, LMTower)
    train(given)
    after = dict(load_final(RunFolder(given.output)).tower.named_parameters())
    found = {name for name in changed(before, after) if "proj" not in name}
    assert found == {n for n in after if n.endswith(("query.weight", "value.weight"))}


def test_learning_rates_decay_with_the_distance_from_the_head(lm_settings: Any, tiny_cache: Path) -> None:
    tower = build_tower(lm_settings, Cache(tiny_cache).info.encoder, LMTokenizer.load(lm_settings.text))
    rates = {"lr": 1e-2, "lm_lr": 1e-3, "layer_decay": 0.5}
    optimizer = make_optimizer(tower, torch.nn.Module(), **rates, weight_decay=0.1, beta2=0.98)
    share = {id(p): group["share"] for group in optimizer.param_groups for p in group["params"]}
    shares = {name: share[id(p)] for name, p in tower.named_parameters()}
    assert shares["text.proj.weight"] == 1
    prefix = "text.transformer.encoder.layer."
    measured = [shares[f"{prefix}{i}.attention.self.query.weight"] for i in range(3)]
    assert measured == pytest.approx([0.1 / 8, 0.1 / 4, 0.1 / 2])
    assert shares["text.transformer.embeddings.word_embeddings.weight"] == pytest.approx(0.1 / 16)


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2, "ema": 0.9}, {"precision": "bf16", "warm_start": "ridge"}])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_resume_with_the_models_dropout_equals_the_uninterrupted_run(
    lms: dict[str, Path], lm_settings: Any, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    given = replace(lm_settings, text=str(lms[family]), epochs=2, **changes)
    train(given)
    stopped = replace(given, output=tmp_path / "stopped")
    train(stopped, on_progress=stop_at(7))
    assert train(stopped, resume=True).complete
    expected = load_final(RunFolder(given.output)).tower.state_dict()
    for name, tensor in load_final(RunFolder(stopped.output)).tower.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert json.loads((stopped.output / "final" / "config.json").read_text())["lm"]["pooler"] == "mean"


@pytest.mark.parametrize("family", ["bert", "mt5", "gpt2"])
def test_gradient_checkpointing_gives_the_same_gradients(lms: dict[str, Path], family: str) -> None:
    tower = LMTower.from_pretrained(str(lms[family]), 6, context_length=CONTEXT).train()
    ids, gradients, kept = LMTokenizer.load(lms[family]).encode(CAPTIONS, CONTEXT), [], []
    for tower.grad_checkpointing in (False, True, False):
        tower.zero_grad()
        torch.manual_seed(0)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.numel()) or x, lambda x: x):
            features = tower.encode(ids)
        features.square().sum().backward()
        gradients.append([p.grad.clone() for p in tower.parameters() if p.grad is not None])
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 2, "it holds less"
    assert kept[2] == kept[0]
    for plain, twice in zip(*gradients[:2], strict=True):
        torch.testing.assert_close(plain, twice)


def test_a_run_starts_from_an_earlier_run_of_a_language_model(
    lm_settings: Any, tiny_cache: Path, tmp_path: Path
) -> None:
    train(replace(lm_settings, pooler="cls", epochs=1))
    encoder, tokenizer = Cache(tiny_cache).info.encoder, LMTokenizer.load(lm_settings.text)
    before = load_final(RunFolder(lm_settings.output)).tower
    given = replace(lm_settings, text=str(lm_settings.output), output=tmp_path / "next", context_length=30, dropout=0.5)
    tower = build_tower(given, encoder, tokenizer)
    assert isinstance(tower, LMTower)
    assert (tower.config.pooler, tower.config.context_length) == ("cls", 30)
    assert tower.transformer.encoder.layer[0].output.dropout.p == 0.5
    ids = tokenizer.encode(CAPTIONS, CONTEXT)
    assert torch.equal(tower.eval().encode(ids), before.encode(ids))
    with pytest.raises(EncoderError, match=r"--context-length 60: .*run takes at most 40 tokens"):
        build_tower(replace(given, context_length=60), encoder, tokenizer)
    for flag, value in (("pooler", "eos"), ("head", "mlp")):
        with pytest.raises(EncoderError, match=rf"--{flag} {value}: the run .* learned with .*, which stays: drop"):
            build_tower(replace(given, **{flag: value}), encoder, tokenizer)
    train(given)


def test_merging_lora_in_gpt2_keeps_the_features(lms: dict[str, Path]) -> None:
    tower = LMTower.from_pretrained(str(lms["gpt2"]), 6, pooler="eos", context_length=CONTEXT).eval()
    ids = LMTokenizer.load(lms["gpt2"]).encode(CAPTIONS, CONTEXT)
    plain = tower.encode(ids)
    tower.add_lora(rank=2, alpha=4.0, targets=("c_attn",), dropout=0.0)
    assert torch.equal(tower.eval().encode(ids), plain)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        merged = tower.plain().encode(ids)
        torch.testing.assert_close(merged, tower.encode(ids), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(merged, plain, atol=1e-2)


def test_a_ridge_warm_start_retrieves_before_the_first_step(lm_settings: Any, tiny_cache: Path) -> None:
    curves = {}
    for warm in ("none", "ridge"):
        given = replace(lm_settings, output=lm_settings.output / warm, val=tiny_cache, warm_start=warm, lora_rank=2)
        train(given)
        curves[warm] = [line for line in RunFolder(given.output).metrics() if "r_at_1" in line]
    assert [line["step"] for line in curves["ridge"]] == [0, *[line["step"] for line in curves["none"]]]
    assert curves["ridge"][0]["r_at_1"] > 3 / 40, "chance is one in forty"
    assert curves["ridge"][1]["r_at_10"] > curves["none"][0]["r_at_10"]


@pytest.mark.parametrize(("recipe", "text"), [("lm", "scratch"), ("lm", "clip"), ("few", "lm"), ("many", "clip")])
def test_a_recipe_for_other_towers_is_refused(recipe: Any, text: str) -> None:
    with pytest.raises(DistillError, match=rf"--recipe {recipe} is for "):
        settings_of(recipe, {"text": text})


def test_lora_alpha_must_be_positive_and_finite(lm_settings: Any) -> None:
    for alpha in (0.0, -1.0, float("inf")):
        with pytest.raises(DistillError, match=r"--lora-alpha .*: must be positive and finite"):
            replace(lm_settings, lora_rank=2, lora_alpha=alpha)


@pytest.mark.parametrize("head", ["mlp", "glu", "deep"])
def test_a_head_that_corrects_the_fitted_one_begins_as_it(head: Any, lm_settings: Any, tiny_cache: Path) -> None:
    first = {}
    for form in ("linear", head):
        given = replace(lm_settings, output=lm_settings.output / form, val=tiny_cache, warm_start="ridge", head=form)
        train(replace(given, train_layers=0, epochs=6))
        first[form] = next(line for line in RunFolder(given.output).metrics() if "r_at_1" in line)
    assert first[head]["step"] == 0
    for name in ("r_at_1", "r_at_5", "r_at_10", "median_rank", "alignment"):
        assert first[head][name] == pytest.approx(first["linear"][name], rel=1e-5), name
    tower = load_final(RunFolder(lm_settings.output / head)).tower
    assert isinstance(tower, LMTower)
    assert tower.config.head_form == f"linear + {head}"
    correction = [p for n, p in tower.named_parameters() if n.startswith("text.proj.correction.")]
    assert all(parameter.abs().max() > 0 for parameter in correction)  # it has learned
    following = replace(lm_settings, output=lm_settings.output / "next", text=str(lm_settings.output / head))
    train(replace(following, warm_start="ridge", val=tiny_cache, epochs=1))  # fits the linear part again
