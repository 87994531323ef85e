"""Ridge regression in closed form, from features of captions to the embeddings of their pictures.

What the solvers need is small whatever the number of captions: sums over them, or one pass over them a round. F
features, M captions, D dimensions of an embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import DistillError

Gram = Tensor | Callable[[Tensor], Tensor]
"""`[F, F]`, the features' products summed over captions, or a function that multiplies it by `[F, D]`."""

MOST_ROUNDS = 200


def ridge(gram: Gram, moment: Tensor, alpha: float, *, start: Tensor | None = None, tolerance: float = 1e-4) -> Tensor:
    """The weights `[F, D]` that minimise ‖X·W - Y‖² + alpha·‖W‖² (Hoerl and Kennard 1970, equation 2.1).

    A matrix is factorised; a function is asked in rounds of conjugate gradients, for all D columns at once (Hestenes
    and Stiefel 1952, section 3).

    Args:
        gram: XᵀX of the features X `[M, F]`.
        moment: XᵀY of the targets Y `[M, D]`, `[F, D]`.
        alpha: the penalty, above 0.
        start: where the rounds begin, e.g. the solution for another penalty.
        tolerance: of the residual's norm, relative to the moment's in each column, at which the rounds end.

    >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0], [3.0]])
    >>> ridge(x.T @ x, x.T @ y, 1.0).round(decimals=3).flatten().tolist()
    [1.0, 1.0]
    """
    if callable(gram):
        start = torch.zeros_like(moment) if start is None else start
        return _conjugate_gradients(gram, moment, alpha, start, tolerance)
    penalized = gram + alpha * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(moment, torch.linalg.cholesky(penalized))


def _conjugate_gradients(
    gram: Callable[[Tensor], Tensor], moment: Tensor, alpha: float, start: Tensor, tolerance: float
) -> Tensor:
    weights = start.clone()
    residual = moment - gram(weights) - alpha * weights
    direction, left = residual.clone(), residual.square().sum(0)  # [F, D], [D]
    tiny = torch.finfo(moment.dtype).tiny
    enough = (tolerance**2 * moment.square().sum(0)).clamp(min=tiny)
    for _ in range(MOST_ROUNDS):
        if (left <= enough).all():
            break
        product = gram(direction) + alpha * direction
        step = left / (direction * product).sum(0).clamp(min=tiny)
        weights += step * direction
        residual -= step * product
        left, before = residual.square().sum(0), left
        direction = residual + left / before.clamp(min=tiny) * direction
    return weights


@dataclass(kw_only=True)
class Moments:
    """Sums over captions with dense features, from which `ridge` solves with an intercept.

    >>> moments = Moments.zeros(2, 1)
    >>> moments.add(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0], [3.0]]))
    >>> weights, intercept = moments.solve(1.0)
    >>> weights.round(decimals=3).flatten().tolist(), intercept.round(decimals=3).tolist()
    ([0.0, 0.667], [1.667])
    """

    count: int
    gram: Tensor
    moment: Tensor
    feature_sum: Tensor
    target_sum: Tensor

    @classmethod
    def zeros(cls, num_features: int, dim: int, device: torch.device | str = "cpu") -> "Moments":
        """Of no caption; kept in float64, for they are differences of large sums in the end."""
        sizes = (num_features, num_features), (num_features, dim), (num_features,), (dim,)
        gram, moment, features, targets = (torch.zeros(s, dtype=torch.float64, device=device) for s in sizes)
        return cls(count=0, gram=gram, moment=moment, feature_sum=features, target_sum=targets)

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Count in some captions: features `[m, F]` and targets `[m, D]`."""
        features, targets = features.to(self.gram), targets.to(self.gram)
        self.count += len(features)
        self.gram.addmm_(features.T, features)
        self.moment.addmm_(features.T, targets)
        self.feature_sum += features.sum(0)
        self.target_sum += targets.sum(0)

    def solve(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Weights `[F, D]` and the intercept `[D]`, which is not penalised.

        Raises:
            DistillError: no caption was counted in.
        """
        if not self.count:
            raise DistillError("a regression over no captions: cache captions with --text-field")
        feature_mean, target_mean = self.feature_sum / self.count, self.target_sum / self.count
        gram = self.gram - self.count * torch.outer(feature_mean, feature_mean)
        weights = ridge(gram, self.moment - self.count * torch.outer(feature_mean, target_mean), alpha)
        return weights, target_mean - feature_mean @ weights


def retrieval_metric(image_emb: Tensor, shrinkage: float) -> Tensor:
    """What predictions are multiplied by so that plain cosines with pictures rank them better, `[D, D]`.

    Directions in which all pictures differ say less than those in which few do: predictions are held against pictures
    in Mahalanobis' metric of the pictures. As it is symmetric, the prediction can carry all of it, and the pictures
    stay as they are. The covariance is shrunk towards a multiple of the identity (Ledoit and Wolf 2004, section 2).

    Args:
        image_emb: `[N, D]`.
        shrinkage: weight of the identity, in mean variances; a large one gives the plain cosine.
    """
    centred = image_emb - image_emb.mean(0)
    covariance = centred.T @ centred / len(centred)
    mean_variance = covariance.trace() / len(covariance)
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    # A gallery of equal pictures has no metric, and needs none.
    mean_variance = mean_variance.clamp(min=torch.finfo(covariance.dtype).tiny)
    metric: Tensor = torch.linalg.inv(covariance / mean_variance + shrinkage * identity)
    return metric
