"""InfoNCE and SigLIP in blocks equal their dense forms and open_clip, in values and gradients."""

import math
from collections.abc import Callable

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from clipglot.distill.data.targets import Bank
from clipglot.distill.losses.infonce import InfoNCE
from clipglot.distill.losses.loss import Loss
from clipglot.distill.losses.siglip import SigLIP
from support.dense_losses import equal_pairs, gradients, plain_infonce, plain_siglip, require_equal, targets, unit

LOSSES: list[type[Loss]] = [InfoNCE, SigLIP]


@pytest.mark.parametrize("loss_class", LOSSES)
@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 0, 3, 3], [0] * 7], ids=["distinct", "some equal", "all equal"])
@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_loss_and_gradients_equal_the_dense_form(
    loss_class: type[Loss], groups: list[int] | None, temperature: float
) -> None:
    image_emb, text_emb = unit(7, 16, 0), unit(7, 16, 1).requires_grad_()
    equal = equal_pairs(list(range(7)) if groups is None else groups)
    loss_fn = loss_class(temperature=temperature, max_logit_scale=100).double()
    loss = loss_fn(text_emb, targets(image_emb, equal=equal.nonzero().T.numpy()))
    if loss_fn.logit_bias is None:
        expected = plain_infonce(text_emb, image_emb, loss_fn.logit_scale.exp(), equal=equal)
    else:
        expected = plain_siglip(text_emb, image_emb, loss_fn.logit_scale.exp(), loss_fn.logit_bias, equal=equal)
    require_equal(loss, expected, text_emb, *loss_fn.parameters())


@pytest.mark.parametrize("batch_size", [2, 7, 64])
@pytest.mark.parametrize("loss_class", LOSSES)
def test_equals_open_clips_loss_in_float32(loss_class: type[Loss], batch_size: int) -> None:
    image_emb, text_emb = unit(batch_size, 16, 0).float(), unit(batch_size, 16, 1).float().requires_grad_()
    loss_fn = loss_class(temperature=0.05, max_logit_scale=100)
    theirs = open_clip.ClipLoss() if loss_fn.logit_bias is None else open_clip.loss.SigLipLoss()
    loss = loss_fn(text_emb, targets(image_emb))
    bias = () if loss_fn.logit_bias is None else (loss_fn.logit_bias,)
    expected = theirs(image_emb, text_emb, loss_fn.logit_scale.exp(), *bias)
    torch.testing.assert_close(loss, expected)
    of = [text_emb, *loss_fn.parameters()]
    torch.testing.assert_close(gradients(loss, *of), gradients(expected, *of), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss_class", LOSSES)
def test_half_precision_inputs_give_a_close_loss(loss_class: type[Loss]) -> None:
    """bf16 keeps 8 bits: cosines move by up to 2^-8, logits at scale 20 by 0.08."""
    image_emb, text_emb = unit(9, 16, 0), unit(9, 16, 1)
    loss_fn = loss_class(temperature=0.05, max_logit_scale=100)
    exact = loss_fn(text_emb.float(), targets(image_emb.float()))
    assert loss_fn(text_emb.float(), targets(image_emb.half())).item() == pytest.approx(exact.item(), rel=1e-3)
    assert loss_fn(text_emb.bfloat16().float(), targets(image_emb.half())).item() == pytest.approx(
        exact.item(), rel=0.02
    )


@pytest.mark.parametrize("scale", [100.0, 1000.0])
def test_logits_beyond_the_range_of_float32_exponentials_are_exact(scale: float) -> None:
    """Captions opposite to every image, and images opposite to every caption: e^(-2 scale) is no float32."""
    image_emb = F.normalize(torch.tensor([[1.0, 0], [1, 0.1], [-1, 0.05]]), dim=-1)
    text_emb = F.normalize(torch.tensor([[1.0, 0.02], [-1, 0.03], [1, -0.2]]), dim=-1).requires_grad_()
    loss_fn = InfoNCE(temperature=1 / scale, max_logit_scale=scale)
    loss = loss_fn(text_emb, targets(image_emb))
    none = torch.zeros(3, 3, dtype=torch.bool)
    expected = plain_infonce(text_emb.double(), image_emb.double(), loss_fn.logit_scale.exp().double(), equal=none)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradients(loss, text_emb), gradients(expected, text_emb), rtol=1e-4, atol=1e-4)


def test_nan_in_a_caption_gives_a_nan_loss() -> None:
    text_emb = unit(4, 8, 1)
    text_emb[2, 3] = math.nan
    for loss_class in LOSSES:
        loss_fn = loss_class(temperature=0.1, max_logit_scale=100).double()
        assert math.isnan(loss_fn(text_emb, targets(unit(4, 8, 0))).item())


def test_a_batch_of_equal_captions_has_zero_loss_and_gradient() -> None:
    text_emb = unit(4, 8, 1).requires_grad_()
    loss_fn = InfoNCE(temperature=0.1, max_logit_scale=100).double()
    loss = loss_fn(text_emb, targets(unit(4, 8, 0), equal=np.array(np.nonzero(~np.eye(4, dtype=bool)))))
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradients(loss, text_emb)[0].abs().max() < 1e-12


@pytest.mark.parametrize("loss_class", LOSSES)
def test_the_temperature_stays_in_its_bounds(loss_class: Callable[..., Loss]) -> None:
    loss_fn = loss_class(temperature=0.02, max_logit_scale=100)
    for value, expected in ((9.0, 100.0), (-1.0, 1.0), (math.log(30), 30.0)):
        with torch.no_grad():
            loss_fn.logit_scale.fill_(value)
        loss_fn.clamp_()
        assert loss_fn.logit_scale.exp().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_bank_of_negatives_extends_only_the_softmax_over_images(with_bias: bool) -> None:
    image_emb, text_emb, further = unit(5, 8, 0), unit(5, 8, 1).requires_grad_(), unit(11, 8, 2)
    masked = np.array([[0, 3, 1], [2, 2, 9]])  # captions 0 and 3 describe image 2, caption 1 image 9
    bias = torch.zeros(11, dtype=torch.float64)
    if with_bias:
        bias[[4, 10]] = -math.inf  # no negatives of any caption
    bank = Bank(emb=further, bias=bias if with_bias else None, masked=masked)
    loss_fn = InfoNCE(temperature=0.1, max_logit_scale=100).double()
    loss = loss_fn(text_emb, targets(image_emb, bank=bank))

    scale, own = loss_fn.logit_scale.exp(), torch.arange(5)
    beyond = scale * text_emb @ further.T + bias
    beyond = beyond.index_put(tuple(torch.from_numpy(masked)), torch.tensor(-math.inf, dtype=torch.float64))
    logits = scale * text_emb @ image_emb.T
    expected = (F.cross_entropy(torch.cat([logits, beyond], 1), own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    of = [text_emb, loss_fn.logit_scale]
    torch.testing.assert_close(gradients(loss, *of), gradients(expected, *of), rtol=1e-9, atol=1e-12)


def test_a_fully_masked_bank_changes_nothing() -> None:
    image_emb, text_emb = unit(5, 8, 0), unit(5, 8, 1)
    bank = Bank(emb=unit(3, 8, 2), bias=torch.full((3,), -math.inf).double(), masked=np.zeros((2, 0), np.int64))
    loss_fn = InfoNCE(temperature=0.1, max_logit_scale=100).double()
    assert torch.equal(loss_fn(text_emb, targets(image_emb, bank=bank)), loss_fn(text_emb, targets(image_emb)))
