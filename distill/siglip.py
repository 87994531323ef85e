"""The sigmoid loss, in blocks: every pair of a caption and a picture is a question of its own.

Zhai et al. 2023, arXiv:2303.15343, section 3.2 and algorithm 1. Nothing is normalised over the batch, so loss and
gradient come from one pass over the blocks.

B captions and pictures of a step, b captions of this process, D features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .loss import Loss
from .parallel import reduce_sum_
from .targets import Targets, blocks


class SigLIP(Loss):
    """Binary cross-entropy of all pairs, summed over the pictures and averaged over the captions.

    A picture is no negative of a caption that it carries itself: such pairs do not count.
    """

    def __init__(self, *, temperature: float, max_logit_scale: float) -> None:
        """Begin at a temperature, and at a bias that takes most pairs for wrong, as they are."""
        super().__init__(temperature=temperature, max_logit_scale=max_logit_scale)
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """The mean loss of a batch; see `Loss.forward`."""
        loss: Tensor = _BlockedSigmoid.apply(text_emb, self.logit_scale, self.logit_bias, targets)
        return loss


class _BlockedSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text_emb: Tensor, log_scale: Tensor, bias: Tensor, targets: Targets) -> Tensor:
        image_emb, scaled = targets.image_emb.to(text_emb.dtype), text_emb * log_scale.exp()
        own_logits = (scaled * image_emb[targets.own]).sum(1) + bias  # [b]
        num_pairs = len(image_emb)
        loss, num_believed, grad = scaled.new_zeros(()), scaled.new_zeros(()), torch.empty_like(scaled)
        for block in blocks(len(scaled), num_pairs, scaled.device):
            logits = targets.mask_(torch.addmm(bias, scaled[block], image_emb.T), block)  # [r, B]
            loss += F.softplus(logits).sum()
            believed = logits.sigmoid_()
            num_believed += believed.sum()
            torch.mm(believed, image_emb, out=grad[block])
        # Own pairs were summed up as if they were wrong ones: log(1 + e^x) - x is log(1 + e^-x).
        loss = reduce_sum_(loss - own_logits.sum()) / num_pairs
        grad_bias = reduce_sum_(num_believed - len(scaled)) / num_pairs
        grad.sub_(image_emb[targets.own]).mul_(log_scale.exp() / num_pairs)
        ctx.save_for_backward(grad, reduce_sum_((grad * text_emb).sum()), grad_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        grad, grad_log_scale, grad_bias = ctx.saved_tensors
        return grad * grads[0], grad_log_scale * grads[0], grad_bias * grads[0], None
