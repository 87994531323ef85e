"""Label smoothing, and several positives of an image or a caption, equal the dense forms."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from clipglot.distill.data.targets import Bank
from clipglot.distill.losses.infonce import InfoNCE
from clipglot.distill.losses.siglip import SigLIP
from support.dense_losses import plain_infonce, plain_siglip, require_equal, targets, unit

# The image of each caption, and pairs of a caption and another image that has it.
ONE_EACH = (range(5), [])
EQUAL = (range(5), [(0, 1), (0, 3), (1, 0), (4, 1)])
SEVERAL = ([0, 0, 0, 1, 2, 2, 3, 4, 4], [])
SEVERAL_EQUAL = ([0, 0, 0, 1, 2, 2, 3, 4, 4], [(0, 2), (2, 1), (2, 3), (4, 0), (8, 0), (8, 1)])
BATCHES = [ONE_EACH, EQUAL, SEVERAL, SEVERAL_EQUAL]
NAMES = ["one each", "equal captions", "several captions", "several, some equal"]

Pairs = Sequence[tuple[int, int]]


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.99])
@pytest.mark.parametrize("positive", [False, True], ids=["equal left out", "equal positive"])
@pytest.mark.parametrize("with_bank", [False, True], ids=["alone", "bank"])
@pytest.mark.parametrize(("image", "pairs"), BATCHES, ids=NAMES)
def test_infonce_with_several_positives_equals_the_dense_form(
    image: Sequence[int], pairs: Pairs, positive: bool, with_bank: bool, smoothing: float
) -> None:
    image_emb, text_emb, further = unit(5, 8, 0), unit(len(image), 8, 1).requires_grad_(), unit(11, 8, 2)
    equal = torch.zeros(len(image), 5, dtype=torch.bool)
    for caption, other in pairs:
        equal[caption, other] = True
    bias = torch.zeros(11, dtype=torch.float64)
    bias[[4, 10]] = -torch.inf  # no negatives of any caption
    masked = np.array([[0, 3, 1, 2], [2, 2, 9, 10]])
    allowed = (bias == 0).repeat(len(image), 1)
    allowed[tuple(torch.from_numpy(masked))] = False
    images = targets(
        image_emb,
        image=np.array(image) if isinstance(image, list) else None,
        equal=equal.nonzero().T.numpy(),
        equal_are_positive=positive,
        bank=Bank(emb=further, bias=bias, masked=masked) if with_bank else None,
    )
    loss_fn = InfoNCE(temperature=0.1, max_logit_scale=100, label_smoothing=smoothing).double()
    expected = plain_infonce(
        text_emb,
        image_emb,
        loss_fn.logit_scale.exp(),
        image=torch.tensor(image),
        equal=equal,
        positive=positive,
        smoothing=smoothing,
        further=further if with_bank else None,
        allowed=allowed if with_bank else None,
    )
    require_equal(loss_fn(text_emb, images), expected, text_emb, loss_fn.logit_scale)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_label_smoothing_equals_that_of_torch(smoothing: float) -> None:
    image_emb, text_emb = unit(6, 8, 0), unit(6, 8, 1).requires_grad_()
    loss_fn = InfoNCE(temperature=0.1, max_logit_scale=100, label_smoothing=smoothing).double()
    logits, own = loss_fn.logit_scale.exp() * text_emb @ image_emb.T, torch.arange(6)
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    require_equal(loss_fn(text_emb, targets(image_emb)), (theirs(logits, own) + theirs(logits.T, own)) / 2, text_emb)


@pytest.mark.parametrize("positive", [False, True], ids=["equal left out", "equal positive"])
@pytest.mark.parametrize(("image", "pairs"), BATCHES, ids=NAMES)
def test_siglip_with_several_positives_equals_the_dense_form(
    image: Sequence[int], pairs: Pairs, positive: bool
) -> None:
    image_emb, text_emb = unit(5, 8, 0), unit(len(image), 8, 1).requires_grad_()
    equal = torch.zeros(len(image), 5, dtype=torch.bool)
    for caption, other in pairs:
        equal[caption, other] = True
    images = targets(
        image_emb,
        image=np.array(image) if isinstance(image, list) else None,
        equal=equal.nonzero().T.numpy(),
        equal_are_positive=positive,
    )
    loss_fn = SigLIP(temperature=0.1, max_logit_scale=100).double()
    assert loss_fn.logit_bias is not None
    scale, bias = loss_fn.logit_scale.exp(), loss_fn.logit_bias
    index = torch.tensor(image)
    expected = plain_siglip(text_emb, image_emb, scale, bias, equal=equal, image=index, positive=positive)
    require_equal(loss_fn(text_emb, images), expected, text_emb, *loss_fn.parameters())
