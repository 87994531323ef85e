"""The loss against open_clip's, in values and gradients."""

import math

import open_clip
import pytest
import torch
import torch.nn.functional as F
from clipglot.distill.infonce import InfoNCE


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("batch_size", [2, 7, 64])
def test_equals_open_clips_loss_and_gradients(batch_size: int) -> None:
    image_emb = unit(batch_size, 16, 0)
    ours, theirs = (unit(batch_size, 16, 1).requires_grad_() for _ in range(2))
    loss_fn = InfoNCE(temperature=0.05, max_logit_scale=100)
    loss = loss_fn(image_emb, ours, torch.arange(batch_size))
    scale = torch.tensor(math.log(1 / 0.05), requires_grad=True)
    expected = open_clip.ClipLoss()(image_emb, theirs, scale.exp())
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(loss_fn.logit_scale.grad, scale.grad)


def test_equal_captions_are_no_negatives_of_each_other() -> None:
    image_emb, text_emb, group = unit(5, 8, 0), unit(5, 8, 1), torch.tensor([0, 1, 0, 2, 0])
    loss_fn = InfoNCE(temperature=0.1, max_logit_scale=100)
    logits = 10 * text_emb @ image_emb.T
    total = torch.tensor(0.0)
    for i in range(5):
        kept = [j for j in range(5) if j == i or group[j] != group[i]]
        total += torch.logsumexp(logits[i, kept], 0) + torch.logsumexp(logits[kept, i], 0) - 2 * logits[i, i]
    torch.testing.assert_close(loss_fn(image_emb, text_emb, group), total / 10)


def test_a_batch_of_one_caption_has_nothing_to_learn() -> None:
    text_emb = unit(4, 8, 1).requires_grad_()
    loss = InfoNCE(temperature=0.1, max_logit_scale=100)(unit(4, 8, 0), text_emb, torch.zeros(4, dtype=torch.long))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert text_emb.grad is not None
    assert text_emb.grad.abs().max() < 1e-6


def test_the_temperature_stays_in_its_bounds() -> None:
    loss_fn = InfoNCE(temperature=0.02, max_logit_scale=100)
    for value, expected in ((9.0, 100.0), (-1.0, 1.0), (math.log(30), 30.0)):
        with torch.no_grad():
            loss_fn.logit_scale.fill_(value)
        loss_fn.clamp_()
        assert loss_fn.logit_scale.exp().item() == pytest.approx(expected, rel=1e-5)
