"""Regression on the target itself, length and all.

Reimers and Gurevych 2020, arXiv:2004.09813, equation 1. The captions are taken as the tower gives them: brought to unit
norm, their squared distance would be twice the cosine loss and nothing else. Here the tower learns that the target's
length is one, and no gradient is divided by a caption's own length.

b captions of this process, D features.
"""

from torch import Tensor

from ..data.targets import Targets
from ..distributed import with_sum_of_all
from .loss import Loss


class Cosine(Loss):
    """1 - cosine of each caption and its image, averaged over the captions."""

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """The mean loss of a batch; see `Loss.forward`."""
        distance = 1 - (text_emb * targets.own_emb(text_emb.dtype)).sum(1)  # [b]
        return with_sum_of_all(targets.mean(distance))


class SquaredDistance(Loss):
    """Squared distance of each caption to its image, summed over the features and averaged over the captions."""

    takes_raw = True

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """The mean loss of a batch; see `Loss.forward`. The captions `[b, D]` are of any length."""
        distance = (text_emb - targets.own_emb(text_emb.dtype)).square().sum(1)  # [b]
        return with_sum_of_all(targets.mean(distance))
