"""A tower that begins as a bag of tokens gives the bag's features, exactly, and every part of it can learn."""

import pytest
import torch
import torch.nn.functional as F
from clipglot.encoders.errors import EncoderError
from clipglot.encoders.text_bag_init import init_from_bag
from clipglot.encoders.text_scratch import Attention, ScratchTower
from support.tiny_towers import BOS, CAPTIONS, EOS, PAD, make_tower, padded, upstream

SPECIAL = [PAD, BOS, EOS]
SPECIAL_IDS = {"pad_id": PAD, "bos_id": BOS, "eos_id": EOS}


def bag_of(tower: ScratchTower) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights as a regression gives them: some tokens never seen, some rare and long."""
    torch.manual_seed(1)
    weights = torch.randn(tower.config.vocab_size, tower.config.embed_dim)
    weights[5] *= 4
    weights[[*SPECIAL, 9]] = 0.0
    return weights, torch.randn(tower.config.embed_dim)


def predicted(captions: list[list[int]], weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The linear model, plainly: each caption up to its first end-of-text token."""
    return torch.stack([weights[caption[: caption.index(EOS) + 1]].sum(0) + bias for caption in captions])


@pytest.mark.parametrize("attention", ["lengths", "rows"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_the_tower_gives_what_the_bag_predicts(layers: int, quick_gelu: bool, attention: Attention) -> None:
    tower = make_tower(layers=layers, quick_gelu=quick_gelu).double()
    tower.attention = attention
    weights, bias = bag_of(tower)
    init_from_bag(tower.text, weights, bias, **SPECIAL_IDS)
    expected = F.normalize(predicted(CAPTIONS, weights.double(), bias.double()), dim=-1)
    torch.testing.assert_close(F.normalize(tower.encode(CAPTIONS), dim=-1), expected, rtol=0, atol=1e-10)
    theirs = F.normalize(upstream(tower).encode_text(padded(CAPTIONS)), dim=-1)  # which holds float32
    torch.testing.assert_close(theirs, expected, rtol=0, atol=1e-6)


def test_a_narrow_tower_keeps_the_directions_that_matter() -> None:
    tower = make_tower(embed_dim=24).double()  # 16 wide: 13 of them hold content
    weights, bias = bag_of(tower)
    of_rank_13 = torch.randn(20, 13) @ torch.randn(13, 24)
    of_rank_13[SPECIAL] = 0.0
    init_from_bag(tower.text, of_rank_13, of_rank_13[4], **SPECIAL_IDS)
    expected = F.normalize(predicted(CAPTIONS, of_rank_13, of_rank_13[4]).double(), dim=-1)
    torch.testing.assert_close(F.normalize(tower.encode(CAPTIONS), dim=-1), expected, rtol=0, atol=1e-5)
    init_from_bag(tower.text, weights, bias, **SPECIAL_IDS)
    features = F.normalize(tower.encode(CAPTIONS), dim=-1)
    assert (features * F.normalize(predicted(CAPTIONS, weights, bias).double(), dim=-1)).sum(1).min() > 0.7


def test_every_parameter_learns_within_three_steps() -> None:
    tower = make_tower()
    init_from_bag(tower.text, *bag_of(tower), **SPECIAL_IDS)
    before = {name: parameter.detach().clone() for name, parameter in tower.named_parameters()}
    optimizer = torch.optim.SGD(tower.parameters(), lr=0.1)
    targets = torch.randn(len(CAPTIONS), 6)
    for _ in range(3):
        optimizer.zero_grad()
        (tower.encode(CAPTIONS) * targets).sum().backward()
        optimizer.step()
    assert not [name for name, parameter in tower.named_parameters() if torch.equal(parameter, before[name])]


def test_a_bag_without_words_leaves_the_bias_alone() -> None:
    tower = make_tower()
    bias = torch.randn(6)
    init_from_bag(tower.text, torch.zeros(20, 6), bias, **SPECIAL_IDS)
    features = F.normalize(tower.encode(CAPTIONS), dim=-1)
    torch.testing.assert_close(features, F.normalize(bias, dim=0).expand_as(features), rtol=0, atol=1e-5)


def test_a_bag_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"\(21, 6\) do not fit a text tower of \(20, 6\)"):
        init_from_bag(make_tower().text, torch.zeros(21, 6), torch.zeros(6), **SPECIAL_IDS)
    with pytest.raises(EncoderError, match="--width 2 has no room"):
        init_from_bag(make_tower(width=2).text, torch.zeros(20, 6), torch.zeros(6), **SPECIAL_IDS)
