"""InfoNCE, symmetric, with a learned temperature.

The loss of CLIP: Radford et al. 2021, arXiv:2103.00020, section 2.3 and figure 3.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class InfoNCE(nn.Module):
    """Cross-entropy of each caption against the batch's pictures and of each picture against the batch's captions.

    Pictures whose captions read the same are no negatives of each other: their pairs leave both softmaxes.

    >>> loss = InfoNCE(temperature=0.07, max_logit_scale=100.0)
    >>> round(loss.logit_scale.exp().item(), 2)
    14.29
    """

    def __init__(self, *, temperature: float, max_logit_scale: float) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self._max_log_scale = math.log(max_logit_scale)

    def forward(self, image_emb: Tensor, text_emb: Tensor, caption_group: Tensor) -> Tensor:
        """The mean loss of a batch, in nats.

        Args:
            image_emb: `[B, D]`, unit norm, constants.
            text_emb: `[B, D]`, unit norm.
            caption_group: `[B] int64`, equal where captions read the same.
        """
        logits = self.logit_scale.exp() * (text_emb.float() @ image_emb.float().T)  # [B, B], captions × pictures
        same = caption_group[:, None] == caption_group[None, :]
        logits = logits.masked_fill(same.fill_diagonal_(False), -math.inf)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the temperature in CLIP's bounds; called after each step."""
        self.logit_scale.clamp_(0, self._max_log_scale)
