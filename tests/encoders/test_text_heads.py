"""Heads of language models: their forms, and corrections that begin at zero."""

from typing import Any

import pytest
import torch
from clipglot.encoders.text_heads import DeepMLP, GatedMLP, ResidualHead, make_head
from torch import nn

HEADS: list[Any] = ["linear", "mlp", "glu", "deep"]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_heads_that_open_clip_has_are_laid_out_as_there() -> None:
    assert make_head("linear", 8, 6).state_dict().keys() == {"weight"}
    mlp = make_head("mlp", 8, 6)
    assert {name: tuple(value.shape) for name, value in mlp.state_dict().items()} == {
        "0.weight": (7, 8),
        "2.weight": (6, 7),
    }


def test_a_gated_mlp_is_a_product_of_two_projections(x: torch.Tensor) -> None:
    head = make_head("glu", 8, 6).double()
    assert isinstance(head, GatedMLP)
    z = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    gate = (z @ head.gate.weight.T + head.gate.bias).clamp(0, 6)
    value = z @ head.value.weight.T + head.value.bias
    expected = (gate * value) @ head.last.weight.T + head.last.bias
    torch.testing.assert_close(head(x), expected, rtol=1e-12, atol=1e-12)


def test_a_deep_mlp_has_three_hidden_layers_with_dropout(x: torch.Tensor) -> None:
    head = make_head("deep", 8, 6, dropout=0.5).double()
    assert isinstance(head, DeepMLP)
    assert sum(isinstance(module, nn.Linear) for module in head.hidden) == 3
    assert {module.p for module in head.modules() if isinstance(module, nn.Dropout)} == {0.5}
    assert not torch.equal(head.train()(x), head(x))
    assert torch.equal(head.eval()(x), head(x))


@pytest.mark.parametrize("head", HEADS[1:])
def test_a_correction_is_zero_at_first_and_has_a_gradient(head: Any, x: torch.Tensor) -> None:
    made = make_head(head, 8, 6, residual=True).double()
    assert isinstance(made, ResidualHead)
    assert torch.equal(made(x), made.linear(x))
    made(x).square().sum().backward()
    moved = [name for name, p in made.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert any(name.startswith("correction.") for name in moved)
