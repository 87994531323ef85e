"""Regression on the image's embedding, by direction alone (cosine) or with its length (mean squared error).

A caption is drawn to its image and pushed away from none. Captions are not compared with each other, so a batch may be
small, and nothing is held but its embeddings.

b captions of this process, D features.
"""

from torch import Tensor

from ..data.targets import Targets
from ..distributed import sum_of_shares
from .loss import Loss


class Cosine(Loss):
    """1 - cosine of each caption and its image, averaged over the captions.

    On unit vectors the squared distance is 2 - 2 cos, so this is half of it: Grill et al. 2020, arXiv:2006.07733,
    equation 2.
    """

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """Mean loss of a batch; see `Loss.forward`."""
        distance = 1 - (text_emb * targets.own_emb(text_emb.dtype)).sum(1)  # [b]
        return sum_of_shares(targets.mean(distance))


class SquaredDistance(Loss):
    """Squared distance of each caption to its image, summed over the features and averaged over the captions.

    Reimers and Gurevych 2020, arXiv:2004.09813, equation 1. Captions are taken as the tower gives them: on captions of
    unit norm this would be twice the cosine loss. Here the tower also learns that the target's length is one, and no
    gradient is divided by a caption's own length.
    """

    takes_raw = True

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """Mean loss of a batch; see `Loss.forward`. The captions `[b, D]` are of any length."""
        distance = (text_emb - targets.own_emb(text_emb.dtype)).square().sum(1)  # [b]
        return sum_of_shares(targets.mean(distance))
