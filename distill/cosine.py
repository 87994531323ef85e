"""Regression on the direction of the target: each caption is drawn to its picture, and pushed from none.

On unit vectors the squared distance is 2 - 2 cos, so this is half of it: Grill et al. 2020, arXiv:2006.07733, eq. 2.
Captions do not meet, so the batch may be small and nothing is held but its embeddings.

b captions of this process, D features.
"""

from torch import Tensor

from .loss import Loss
from .parallel import with_sum_of_all
from .targets import Targets


class Cosine(Loss):
    """1 - cosine of each caption and its picture, averaged over the captions."""

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """The mean loss of a batch; see `Loss.forward`."""
        distance = 1 - (text_emb * targets.own_emb(text_emb.dtype)).sum(1)  # [b]
        return with_sum_of_all(targets.mean(distance))
