"""Bag of tokens in closed form: the solution equals scikit-learn's, and the metric improves retrieval."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clipglot.cache.read.cache import Cache
from clipglot.distill.data.tokens import tokenize
from clipglot.distill.training.ridge import retrieval_metric, solve_ridge
from clipglot.distill.training.token_bag import TokenCounts
from clipglot.encoders.tokenizer import train_bpe
from clipglot.evals.retrieval import retrieve
from sklearn.linear_model import Ridge


def counts_and_targets(cache: Path) -> tuple[TokenCounts, torch.Tensor, torch.Tensor]:
    """Real captions as bags and as a matrix `[M, V]`, and the embeddings `[M, D]` of their images."""
    opened = Cache(cache)
    tokenizer = train_bpe(opened.captions(), 300)
    ids, lengths = tokenize(tokenizer, opened.captions(), 24).gather(np.arange(opened.info.num_captions))
    matrix = torch.zeros(len(lengths), tokenizer.vocab_size, dtype=torch.float64)
    image_index = np.repeat(np.arange(len(lengths)), lengths)
    matrix.index_put_((torch.from_numpy(image_index), torch.from_numpy(ids)), torch.ones((), dtype=torch.float64), True)
    targets = torch.from_numpy(opened.image_emb()[opened.caption_image()]).double()
    return TokenCounts(ids, lengths, tokenizer.vocab_size), matrix, targets


@pytest.mark.parametrize("alpha", [0.5, 20.0])
def test_weights_equal_those_of_scikit_learn(tiny_cache: Path, alpha: float) -> None:
    bags, matrix, targets = counts_and_targets(tiny_cache)
    theirs = Ridge(alpha=alpha, solver="cholesky").fit(matrix.numpy(), targets.numpy())
    weights, intercept = bags.solve(targets, alpha, tolerance=1e-10)
    np.testing.assert_allclose(weights.numpy(), theirs.coef_.T, atol=1e-8)
    np.testing.assert_allclose(intercept.numpy(), theirs.intercept_, atol=1e-8)


def test_products_with_bags_equal_those_with_their_matrix(tiny_cache: Path) -> None:
    bags, matrix, targets = counts_and_targets(tiny_cache)
    weights = torch.randn(matrix.shape[1], 3, dtype=torch.float64)
    torch.testing.assert_close(bags.times(weights), matrix @ weights)
    torch.testing.assert_close(bags.transposed_times(targets), matrix.T @ targets)
    torch.testing.assert_close(bags.totals.double(), matrix.sum(0))


def test_iterations_from_the_solution_stay_there() -> None:
    torch.manual_seed(0)
    features, targets = torch.randn(30, 8, dtype=torch.float64), torch.randn(30, 2, dtype=torch.float64)
    gram, moment = features.T @ features, features.T @ targets
    solved = torch.linalg.solve(gram + 3 * torch.eye(8, dtype=torch.float64), moment)
    asked = []

    def multiply(weights: torch.Tensor) -> torch.Tensor:
        asked.append(weights)
        return gram @ weights

    assert torch.equal(solve_ridge(multiply, moment, 3.0, start=solved), solved)
    assert len(asked) == 1


def test_a_zero_target_has_zero_weights() -> None:
    torch.manual_seed(0)
    gram = torch.eye(4) + 0.1
    moment = torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    weights = solve_ridge(lambda w: gram @ w, moment, 1.0)
    assert torch.equal(weights[:, 0], torch.zeros(4))
    torch.testing.assert_close(weights, torch.linalg.solve(gram + torch.eye(4), moment))


def test_the_metric_retrieves_images_that_plain_cosines_miss() -> None:
    torch.manual_seed(0)
    predicted = torch.randn(400, 16)
    unsaid = torch.randn(400, 16) * torch.tensor([4.0] * 4 + [1.0] * 12)  # most of it in four directions
    image_emb = predicted + unsaid
    image_emb = F.normalize(image_emb, dim=-1)

    def recall(text_emb: torch.Tensor) -> float:
        text_emb = F.normalize(text_emb, dim=-1)
        return retrieve(text_emb.numpy(), image_emb.numpy(), np.arange(400)).report().text_to_image.r_at_10

    plain = recall(predicted)
    assert recall(predicted @ retrieval_metric(image_emb, 0.3)) > 1.1 * plain
    assert recall(predicted @ retrieval_metric(image_emb, 1e5)) == pytest.approx(plain, abs=0.01)


def test_the_metric_is_defined_for_equal_images() -> None:
    assert torch.isfinite(retrieval_metric(torch.ones(5, 3), 1.0)).all()
