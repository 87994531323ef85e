"""SigLIP, the pairwise sigmoid loss, in blocks: each pair of a caption and an image is classified by itself.

Zhai et al. 2023, arXiv:2303.15343, section 3.2 and algorithm 1. Nothing is normalised over the batch, so loss and
gradient come from one pass over the blocks.

B images of a step, b captions of this process, D features, r captions of a block.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.targets import Targets, row_blocks
from ..distributed import reduce_sum_
from .loss import Loss


class SigLIP(Loss):
    """Binary cross-entropy of all pairs, summed over the images and averaged over the captions.

    An image is no negative of a caption that it has itself: such pairs do not count, or count as positives. The
    captions of an image weigh as much as another image's, for any number of them.
    """

    def __init__(self, *, temperature: float, max_logit_scale: float) -> None:
        """Begin at a temperature, and at a bias that takes most pairs for negatives, as they are."""
        super().__init__(temperature=temperature, max_logit_scale=max_logit_scale)
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """Mean loss of a batch; see `Loss.forward`."""
        loss: Tensor = _BlockedSigmoid.apply(text_emb, self.logit_scale, self.logit_bias, targets)
        return loss


class _BlockedSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text_emb: Tensor, log_scale: Tensor, bias: Tensor, targets: Targets) -> Tensor:
        image_emb, scaled = targets.image_emb.to(text_emb.dtype), text_emb * log_scale.exp()
        positive, num_positive = _positive_sum(targets, scaled.dtype)  # [b, D], [b]
        positive_logits = (scaled * positive).sum(1) + bias * num_positive  # [b]
        num_images, weights = len(image_emb), targets.weights(scaled.dtype)
        loss, num_predicted, grad = torch.empty_like(weights), torch.empty_like(weights), torch.empty_like(scaled)
        for block in row_blocks(len(scaled), num_images, scaled.device):
            logits = targets.mask_unless_positive_(torch.addmm(bias, scaled[block], image_emb.T), block)  # [r, B]
            loss[block] = F.softplus(logits).sum(1)
            probabilities = logits.sigmoid_()
            num_predicted[block] = probabilities.sum(1)
            torch.mm(probabilities, image_emb, out=grad[block])
        # Positives were summed up as if they were negatives: log(1 + e^x) - x is log(1 + e^-x).
        grad_bias = reduce_sum_(targets.mean(num_predicted - num_positive))
        grad.sub_(positive).mul_(weights[:, None]).mul_(log_scale.exp() / num_images)
        ctx.save_for_backward(grad, reduce_sum_((grad * text_emb).sum()), grad_bias)
        return reduce_sum_(targets.mean(loss - positive_logits))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        grad, grad_log_scale, grad_bias = ctx.saved_tensors
        return grad * grads[0], grad_log_scale * grads[0], grad_bias * grads[0], None


def _positive_sum(targets: Targets, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sum of the positives of each caption, `[b, D]`, and their number `[b]`."""
    own_emb = targets.own_emb(dtype)
    count = own_emb.new_ones(len(own_emb))
    if not targets.equal_are_positive:
        return own_emb, count
    captions, images = targets.equal_pairs()
    count.index_add_(0, captions, torch.ones_like(captions, dtype=dtype))
    return own_emb.index_add(0, captions, targets.image_emb[images].to(dtype)), count
