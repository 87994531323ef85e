"""Distillation of similarities: a caption is to be as near to each image of the batch as its own image is.

Fang et al. 2021, arXiv:2101.04731 (SEED), section 3.2: the student's softmax over the teacher's embeddings is matched
to the teacher's own. Theirs are a queue's, these are the batch's, the own one among them as there. Images are known
to every process, so nothing travels but the sum; loss and gradient come from one pass over blocks of captions.

B images of a step, b captions of this process, D features, r captions of a block.
"""

from typing import Any

import torch
from torch import Tensor

from ..data.targets import Targets, blocks
from ..distributed import reduce_sum_
from .loss import Loss


class Similarity(Loss):
    """KL divergence from the image's softmax over the batch's images to the caption's, averaged over the captions.

    The caption's temperature is learned, the image's is given. Other images that carry the caption leave both.
    """

    def __init__(self, *, temperature: float, max_logit_scale: float, teacher_temperature: float) -> None:
        """Begin at a temperature; `teacher_temperature` of the images' softmax stays."""
        super().__init__(temperature=temperature, max_logit_scale=max_logit_scale)
        self._teacher_temperature = teacher_temperature

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """The mean loss of a batch; see `Loss.forward`."""
        return match_similarities(text_emb, self.logit_scale, targets, self._teacher_temperature)


def match_similarities(text_emb: Tensor, log_scale: Tensor, targets: Targets, teacher_temperature: float) -> Tensor:
    """The loss of `Similarity`, also as a term beside another loss whose temperature it shares.

    Args:
        text_emb: `[b, D]`, unit norm.
        log_scale: `[]`, the logarithm of 1 / temperature of the captions' softmax.
        targets: the images.
        teacher_temperature: of the images' softmax.
    """
    loss: Tensor = _BlockedSimilarity.apply(text_emb, log_scale, targets, teacher_temperature)
    return loss


class _BlockedSimilarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text_emb: Tensor, log_scale: Tensor, targets: Targets, temperature: float) -> Tensor:
        image_emb, scaled = targets.image_emb.to(text_emb.dtype), text_emb * log_scale.exp()
        teacher = targets.own_emb(text_emb.dtype) / temperature  # [b, D]
        divergence, grad = torch.empty_like(scaled[:, 0]), torch.empty_like(scaled)
        for block in blocks(len(scaled), len(image_emb), scaled.device):
            log_wanted = targets.mask_(teacher[block] @ image_emb.T, block).log_softmax(1)  # [r, B]
            log_given = targets.mask_(scaled[block] @ image_emb.T, block).log_softmax(1)
            wanted, no_pair = log_wanted.exp(), log_wanted == -torch.inf
            # Pairs that are none have a share of 0 in both, and the difference of their logarithms is no number.
            divergence[block] = (log_wanted.sub_(log_given).masked_fill_(no_pair, 0).mul_(wanted)).sum(1)
            torch.mm(log_given.exp_().sub_(wanted), image_emb, out=grad[block])
        grad.mul_(targets.shares(grad.dtype)[:, None]).mul_(log_scale.exp() / len(image_emb))
        ctx.save_for_backward(grad, reduce_sum_((grad * text_emb).sum()))
        return reduce_sum_(targets.mean(divergence))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad, grad_log_scale = ctx.saved_tensors
        return grad * grads[0], grad_log_scale * grads[0], None, None
