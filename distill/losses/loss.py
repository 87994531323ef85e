"""Base of the losses: a temperature within CLIP's bounds, which a softmax or a sigmoid learns.

B images of a step, b captions of this process, D features.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn

from ..data.targets import Targets
from ..train_settings import LossSettings


class Loss(nn.Module):
    """Loss of captions against images, both of unit norm.

    Attributes:
        takes_raw: whether captions come as the tower gives them, before they are brought to unit norm.
        logit_scale: `[]`, logarithm of the factor on cosines; losses without logits leave it as it was.
        logit_bias: `[]`, added to the scaled cosines; None in losses that have none.
    """

    takes_raw = False
    logit_bias: nn.Parameter | None

    def __init__(self, *, temperature: float, max_logit_scale: float) -> None:
        """Begin at a temperature.

        Args:
            temperature: 1 / factor at the start.
            max_logit_scale: largest factor.
        """
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.register_parameter("logit_bias", None)
        self._max_log_scale = math.log(max_logit_scale)

    @classmethod
    def from_settings(cls, settings: LossSettings, *, compiled: bool = False) -> Self:
        """The loss that a run asks for; `compiled` where `torch.compile` gains, which most losses leave aside."""
        return cls(temperature=settings.resolved_temperature, max_logit_scale=settings.max_logit_scale)

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """Mean loss of a batch, in nats; with several processes that of all of them.

        Its gradient is that of the mean over all B, for the b captions of this process; the gradients of the loss's own
        parameters are complete in every process.

        Args:
            text_emb: `[b, D] float32`, unit norm unless `takes_raw`.
            targets: the images of the batch, and which of them are no negatives.
        """
        raise NotImplementedError

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the temperature within its bounds; called after each step."""
        self.logit_scale.clamp_(0, self._max_log_scale)
