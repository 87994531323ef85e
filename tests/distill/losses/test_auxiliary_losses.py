"""Regression, soft targets and auxiliary terms equal their dense forms, in values and gradients."""

from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipglot.distill.losses.auxiliary import alignment, simcse, uniformity
from clipglot.distill.losses.loss import Loss
from clipglot.distill.losses.objective import LOSSES, Objective, make_loss
from clipglot.distill.losses.regression import Cosine, SquaredDistance
from clipglot.distill.losses.similarity import Similarity, match_similarities
from clipglot.distill.train_settings import LossSettings
from clipglot.evals import embedding_stats
from support.dense_losses import equal_pairs, gradients, plain_similarity, require_equal, targets, unit

GROUPS = [[0], [0, 0], [0, 1, 2, 3, 4, 5, 6], [0, 1, 0, 2, 0, 3, 3], [0] * 7]


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("teacher_temperature", [0.5, 0.01])
def test_similarity_loss_equals_the_dense_form(groups: list[int], teacher_temperature: float) -> None:
    image_emb, text_emb = unit(len(groups), 16, 0), unit(len(groups), 16, 1).requires_grad_()
    equal = equal_pairs(groups)
    loss_fn = Similarity(temperature=0.1, max_logit_scale=100, teacher_temperature=teacher_temperature).double()
    loss = loss_fn(text_emb, targets(image_emb, equal=equal.nonzero().T.numpy()))
    scale = loss_fn.logit_scale.exp()
    expected = plain_similarity(text_emb, image_emb, scale, teacher_temperature, equal=equal)
    require_equal(loss, expected, text_emb, loss_fn.logit_scale)


def test_a_caption_equal_to_its_image_has_nothing_to_learn_from_similarities() -> None:
    image_emb = unit(9, 16, 0)
    text_emb = image_emb.clone().requires_grad_()
    loss = match_similarities(text_emb, torch.tensor(20.0).log().double(), targets(image_emb), 1 / 20)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert gradients(loss, text_emb)[0].abs().max() < 1e-6


def test_nan_in_a_caption_gives_a_nan_loss() -> None:
    text_emb = unit(4, 8, 1)
    text_emb[2, 3] = torch.nan
    same = equal_pairs([0, 1, 0, 1]).nonzero().T.numpy()
    assert match_similarities(text_emb, torch.tensor(1.0), targets(unit(4, 8, 0), equal=same), 0.1).isnan()
    assert uniformity(text_emb, targets(unit(4, 8, 0))).isnan()


def test_regression_losses_equal_the_dense_form() -> None:
    image_emb, long = unit(7, 16, 0), (3 * unit(7, 16, 1)).requires_grad_()
    text_emb = F.normalize(long, dim=-1)
    loss = Cosine(temperature=0.01, max_logit_scale=100)(text_emb, targets(image_emb))
    require_equal(loss, 1 - F.cosine_similarity(text_emb, image_emb).mean(), long)
    require_equal(2 * loss, alignment(text_emb, targets(image_emb)), long)
    loss = SquaredDistance(temperature=0.01, max_logit_scale=100)(long, targets(image_emb))
    require_equal(loss, 16 * F.mse_loss(long, image_emb), long)


def test_each_image_has_weight_one_for_any_number_of_captions() -> None:
    image = np.array([0, 0, 0, 1, 2, 2])
    image_emb, free = unit(3, 8, 0), (2 * unit(6, 8, 1)).requires_grad_()
    text_emb, one_each = F.normalize(free, dim=-1), image_emb[image]
    images, shares = targets(image_emb, image=image), torch.tensor([3, 3, 3, 1, 2, 2]).double().reciprocal() / 3
    scale = torch.tensor(10.0).double()
    given, wanted = (scale * text_emb @ image_emb.T).log_softmax(1), (one_each @ image_emb.T / 0.1).softmax(1)
    divergence = F.kl_div(given, wanted, reduction="none").sum(1)
    squared = (free - one_each).square().sum(1)
    require_equal(match_similarities(text_emb, scale.log(), images, 0.1), (divergence * shares).sum(), free)
    require_equal(alignment(text_emb, images), (2 * (1 - text_emb.mul(one_each).sum(1)) * shares).sum(), free)
    loss = SquaredDistance(temperature=0.01, max_logit_scale=100)(free, images)
    require_equal(loss, (squared * shares).sum(), free)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_uniformity_equals_the_metric(batch_size: int) -> None:
    free = (3 * unit(batch_size, 16, 1)).requires_grad_()
    text_emb = F.normalize(free, dim=-1)
    term = uniformity(text_emb, targets(unit(batch_size, 16, 0)))
    distances = (text_emb[:, None] - text_emb).square().sum(-1)[np.triu_indices(batch_size, 1)]
    require_equal(term, (-2 * distances).exp().mean().log(), free)
    assert term.item() == pytest.approx(embedding_stats.uniformity(text_emb.detach().numpy()), rel=1e-6)


@pytest.mark.parametrize("groups", GROUPS[1:])
def test_simcse_equals_the_dense_form(groups: list[int]) -> None:
    first, second = (unit(len(groups), 16, seed).requires_grad_() for seed in (1, 2))
    same = equal_pairs(groups)
    term = simcse(first, second, targets(unit(len(groups), 16, 0), equal=same.nonzero().T.numpy()))
    logits = (first @ second.T / 0.05).masked_fill(same, -torch.inf)
    require_equal(term, F.cross_entropy(logits, torch.arange(len(groups))), first, second)


def test_the_second_pass_is_used_only_by_simcse() -> None:
    given = LossSettings(simcse=0.5, alignment=0.25)
    first, second = unit(6, 8, 1).requires_grad_(), unit(6, 8, 2).requires_grad_()
    images, objective = targets(unit(6, 8, 0)), Objective(given).double()
    expected = objective.main(first, images) + 0.25 * alignment(first, images)
    expected = expected + 0.5 * simcse(first, second, images)
    loss = objective(torch.cat([3 * first, 2 * second]), images)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", ["infonce", "siglip", "cosine", "mse"])
def test_terms_are_added_by_weight(loss: Any) -> None:
    given = LossSettings(loss=loss, similarity=0.5, alignment=0.25, uniformity=0.125)
    features, image_emb = (2 * unit(6, 8, 1)).requires_grad_(), unit(6, 8, 0)
    images, objective = targets(image_emb), Objective(given).double()
    text_emb = F.normalize(features, dim=-1)
    expected = objective.main(features if loss == "mse" else text_emb, images)
    expected = expected + 0.5 * match_similarities(text_emb, objective.logit_scale, images, 0.05)
    expected = expected + 0.25 * alignment(text_emb, images) + 0.125 * uniformity(text_emb, images)
    require_equal(objective(features, images), expected, features, objective.logit_scale)


def test_every_loss_of_the_flag_can_be_constructed() -> None:
    assert set(LOSSES) == set(get_args(get_type_hints(LossSettings)["loss"]))
    for name, kind in LOSSES.items():
        loss: Loss = make_loss(LossSettings(loss=name))  # type: ignore[arg-type]
        assert type(loss) is kind
        expected = {"siglip": 10.0, "cosine": 100.0, "mse": 100.0}.get(name, 1 / 0.07)
        assert loss.logit_scale.exp().item() == pytest.approx(expected)
