"""Ridge regression from captions onto pictures, in closed form and from sums alone: memory stays as it is.

W features of a caption, D of a picture, n pairs, all in float64.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class PairSums:
    """What a regression needs of its pairs.

    Attributes:
        gram: `[W, W]`, of the captions' features.
        cross: `[W, D]`, of them with the pictures'.
        text: `[W]`, sum of the captions' features.
        image: `[D]`, sum of the pictures'.
        image_gram: `[D, D]`, of the pictures'.
        num_pairs: n.
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
        """Count pairs: features `[b, W]` of captions and embeddings `[b, D]` of their pictures."""
        x, y = text.double().cpu(), image_emb.double().cpu()
        self.gram += x.T @ x
        self.cross += x.T @ y
        self.image_gram += y.T @ y
        self.text += x.sum(0)
        self.image += y.sum(0)
        self.num_pairs += len(x)

    def weights(self, alpha: float, shrinkage: float | None = None) -> Tensor:
        """The map `[W, D]` from a caption's features to the vector that it looks for pictures with.

        It is the ridge regression onto the pictures less their mean, without intercept. By cosine that finds what
        points the same way; with `shrinkage` it finds what the prediction makes most likely under a normal
        distribution of what it leaves unexplained (the linear discriminant: Hastie et al., Elements of Statistical
        Learning, section 4.3), whose covariance is taken to be that of the pictures, shrunk towards a sphere.

        Args:
            alpha: the penalty, in units of the mean square of a feature times n.
            shrinkage: of the covariance, in units of its mean variance; None looks by cosine.
        """
        mean = self.image / self.num_pairs
        cross = self.cross - torch.outer(self.text, mean)
        penalty = alpha * self.gram.diagonal().mean()
        solved: Tensor = torch.linalg.solve(self.gram + penalty * torch.eye(self.width, dtype=torch.float64), cross)
        if shrinkage is None:
            return solved
        covariance = self.image_gram / self.num_pairs - torch.outer(mean, mean)
        sphere = shrinkage * covariance.diagonal().mean() * torch.eye(self.dim, dtype=torch.float64)
        whitened: Tensor = torch.linalg.solve(covariance + sphere, solved.T).T
        return whitened
