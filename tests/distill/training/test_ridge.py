"""Ridge regression from sums: weights equal scikit-learn's, the shrunk covariance that of its linear discriminant."""

import numpy as np
import pytest
import torch
from clipglot.distill.training.ridge import PairSums
from sklearn.covariance import empirical_covariance
from sklearn.linear_model import Ridge


@pytest.fixture
def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Features `[90, 7]` and embeddings `[90, 4]` that depend on them."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(90, 7, generator=generator, dtype=torch.float64) + 0.3
    return text, text[:, :4] @ torch.randn(4, 4, generator=generator, dtype=torch.float64) + 2


def sums_of(text: torch.Tensor, image_emb: torch.Tensor) -> PairSums:
    sums = PairSums(text.shape[1], image_emb.shape[1])
    for block in (slice(0, 40), slice(40, 41), slice(41, 90)):
        sums.add(text[block], image_emb[block])
    return sums


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
def test_weights_equal_those_of_scikit_learn(pairs: tuple[torch.Tensor, torch.Tensor], alpha: float) -> None:
    text, image_emb = pairs
    penalty = alpha * float(text.square().sum(0).mean())
    theirs = Ridge(alpha=penalty, fit_intercept=False).fit(text.numpy(), (image_emb - image_emb.mean(0)).numpy())
    np.testing.assert_allclose(sums_of(text, image_emb).weights(alpha).T.numpy(), theirs.coef_, rtol=1e-9, atol=1e-12)


def test_shrinkage_applies_the_inverse_of_the_shrunk_covariance(
    pairs: tuple[torch.Tensor, torch.Tensor],
) -> None:
    text, image_emb = pairs
    sums, shrinkage = sums_of(text, image_emb), 0.7
    covariance = empirical_covariance(image_emb.numpy())
    covariance += shrinkage * np.diag(covariance).mean() * np.eye(4)
    expected = sums.weights(0.1).numpy() @ np.linalg.inv(covariance)
    np.testing.assert_allclose(sums.weights(0.1, shrinkage).numpy(), expected, rtol=1e-9, atol=1e-12)
