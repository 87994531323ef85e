"""Ridge regression from captions to images, in closed form: memory does not grow with the number of pairs.

From sums over pairs where features are few and dense (`PairSums`), by conjugate gradients where they are many and
sparse (`solve_ridge`).

W features of a caption, D of an image, n pairs, N images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...cache.read.cache import Cache
from ..errors import DistillError

MAX_ROUNDS = 200
SAME = 1e-5  # difference of embeddings, relative to their largest value, below which they are equal but for rounding


@dataclass
class PairSums:
    """Sums over pairs that a regression needs, in float64.

    Attributes:
        width: W.
        dim: D.
        num_pairs: n.
        gram: `[W, W]`, products of the captions' features.
        cross: `[W, D]`, products of captions' and images' features.
        text: `[W]`, sum of the captions' features.
        image: `[D]`, sum of the images' features.
        image_gram: `[D, D]`, products of the images' features.
    """

    width: int
    dim: int
    num_pairs: int = 0
    gram: Tensor = field(init=False)
    cross: Tensor = field(init=False)
    text: Tensor = field(init=False)
    image: Tensor = field(init=False)
    image_gram: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shapes = {
            "gram": (self.width, self.width),
            "cross": (self.width, self.dim),
            "text": (self.width,),
            "image": (self.dim,),
            "image_gram": (self.dim, self.dim),
        }
        for name, shape in shapes.items():
            setattr(self, name, torch.zeros(shape, dtype=torch.float64))

    def add(self, text: Tensor, image_emb: Tensor) -> None:
        """Add pairs: features `[b, W]` of captions and embeddings `[b, D]` of their images."""
        x, y = text.double().cpu(), image_emb.double().cpu()
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.image_gram += y.T @ y
        self.text += x.sum(0)
        self.image += y.sum(0)
        self.num_pairs += len(x)

    def weights(self, alpha: float, shrinkage: float | None = None) -> Tensor:
        """Map `[W, D]` from a caption's features to its query among the images.

        It is the ridge regression onto the images less their mean, without intercept. Compared by cosine, the query
        finds images in the predicted direction. With `shrinkage` it finds the most likely image under a normal
        distribution of the residuals (linear discriminant: Hastie et al., Elements of Statistical Learning, section
        4.3), whose covariance is taken to be that of the images, shrunk towards a sphere.

        Args:
            alpha: penalty, in units of the mean square of a feature times n.
            shrinkage: of the covariance, in units of its mean variance; None for plain cosines.
        """
        mean = self.image / self.num_pairs
        cross = self.cross - torch.outer(self.text, mean)
        penalty = alpha * self.gram.diagonal().mean()
        solved: Tensor = torch.linalg.solve(self.gram + penalty * torch.eye(self.width, dtype=torch.float64), cross)
        if shrinkage is None:
            return solved
        covariance = self.image_gram / self.num_pairs - torch.outer(mean, mean)
        return solved @ _inverse_shrunk(covariance, shrinkage) / _mean_variance(covariance)


def solve_ridge(
    gram: Callable[[Tensor], Tensor],
    moment: Tensor,
    alpha: float,
    *,
    start: Tensor | None = None,
    tolerance: float = 1e-4,
) -> Tensor:
    """Ridge regression by conjugate gradients, for all D columns at once.

    Returns the weights `[W, D]` that minimise ‖X·weights - Y‖² + alpha·‖weights‖² (Hoerl and Kennard 1970, equation
    2.1; Hestenes and Stiefel 1952, section 3).

    Args:
        gram: multiplies `[W, D]` by XᵀX of the features X `[n, W]`.
        moment: XᵀY of the targets Y `[n, D]`, `[W, D]`.
        alpha: penalty, above 0.
        start: initial weights, e.g. the solution for another penalty.
        tolerance: of the residual's norm, relative to the moment's in each column, at which the rounds end.

    >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0], [3.0]])
    >>> solve_ridge(lambda weights: x.T @ (x @ weights), x.T @ y, 1.0).round(decimals=3).flatten().tolist()
    [1.0, 1.0]
    """
    weights = torch.zeros_like(moment) if start is None else start.clone()
    residual = moment - gram(weights) - alpha * weights
    direction, error = residual.clone(), residual.square().sum(0)  # [W, D], [D]
    tiny = torch.finfo(moment.dtype).tiny
    max_error = (tolerance**2 * moment.square().sum(0)).clamp(min=tiny)
    for _ in range(MAX_ROUNDS):
        if (error <= max_error).all():
            break
        product = gram(direction) + alpha * direction
        step = error / (direction * product).sum(0).clamp(min=tiny)
        weights += step * direction
        residual -= step * product
        error, before = residual.square().sum(0), error
        direction = residual + error / before.clamp(min=tiny) * direction
    return weights


def require_distinct(emb: Tensor, what: str, cache: Cache) -> None:
    """Refuse a regression between equal embeddings, whose solution is zero or rounding error.

    Args:
        emb: `[n, W]`, of the captions or the images.
        what: "captions" or "images".
        cache: that they are from.

    Raises:
        DistillError: all are equal.
    """
    if (emb - emb[0]).abs().max() <= SAME * emb.abs().max():
        raise DistillError(
            f"{cache.path}: all {len(emb):,} {what} that --warm-start ridge is fitted on have the same embedding, so "
            f"there is nothing to fit: look at them with `clipglot inspect {cache.path}`, or drop --warm-start"
        )


def retrieval_metric(image_emb: Tensor, shrinkage: float) -> Tensor:
    """Mahalanobis metric of the images, `[D, D]`, by which predictions are multiplied to rank images better.

    Directions in which all images differ say less than those in which few do. The metric is symmetric, so that the
    prediction can carry all of it: images stay as they are, and are compared by plain cosines. The covariance is shrunk
    towards a multiple of the identity (Ledoit and Wolf 2004, section 2).

    Args:
        image_emb: `[N, D]`.
        shrinkage: weight of the identity, in mean variances; a large one gives the plain cosine.
    """
    centred = image_emb - image_emb.mean(0)
    return _inverse_shrunk(centred.T @ centred / len(centred), shrinkage)


def _inverse_shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """Inverse of a covariance `[D, D]`, in units of its mean variance, plus `shrinkage` times the identity."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    inverse: Tensor = torch.linalg.inv(covariance / _mean_variance(covariance) + shrinkage * identity)
    return inverse


def _mean_variance(covariance: Tensor) -> Tensor:
    """Mean variance, above 0: equal images have no metric, and need none."""
    return covariance.diagonal().mean().clamp(min=torch.finfo(covariance.dtype).tiny)
