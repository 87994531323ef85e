"""Auxiliary terms beside a loss: alignment and uniformity, and SimCSE between two passes of a caption.

Alignment draws captions to their images; uniformity spreads them on the sphere (Wang and Isola 2020, arXiv:2005.10242,
section 4.2, with its exponents 2 and 2). SimCSE has each caption's two passes, which differ by dropout alone, find each
other among the captions of the batch (Gao et al. 2021, arXiv:2104.08821, section 3, equation 4).

The last two compare captions with captions, in blocks: no B×B matrix is ever held. Unlike images, captions have a
gradient on both sides, so embeddings and gradients travel between processes, memory O(B D).

B images and captions of a step, b captions of this process, D features, r captions of a block.
"""

from typing import Any

import torch
from torch import Tensor

from .. import distributed
from ..data.targets import Targets, row_blocks

SIMCSE_TEMPERATURE = 0.05  # the paper's


def alignment(text_emb: Tensor, targets: Targets) -> Tensor:
    """Mean squared distance of captions `[b, D]`, unit norm, to their images: 2 - 2 cos."""
    distance = (text_emb - targets.own_emb(text_emb.dtype)).square().sum(1)  # [b]
    return distributed.sum_of_shares(targets.mean(distance))


def uniformity(text_emb: Tensor, targets: Targets) -> Tensor:
    """Logarithm of the mean of exp(-2 squared distance) over all pairs of two captions of the batch.

    Equal captions are pairs like others, as in the paper: their distance is 0 and has no gradient.

    Args:
        text_emb: `[b, D]`, unit norm, the same number in every process.
        targets: of the step.
    """
    loss: Tensor = _BlockedUniformity.apply(text_emb, targets)
    return loss


class _BlockedUniformity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text_emb: Tensor, targets: Targets) -> Tensor:
        all_emb, own = distributed.gather(text_emb), targets.own  # [B, D]
        total, grad = text_emb.new_zeros(()), torch.empty_like(text_emb)
        for block in row_blocks(len(text_emb), len(all_emb), text_emb.device):
            # Of unit vectors -2 |x - y|² = 4 cos - 4: no exponential of it is above 1 or below e^-8.
            weights = (text_emb[block] @ all_emb.T).sub_(1).mul_(4).exp_()  # [r, B]
            weights.diagonal(own.start + block.start).zero_()
            total += weights.sum()
            torch.mm(weights, all_emb, out=grad[block])
        total = distributed.reduce_sum_(total)
        # Each pair is counted from both its ends, and its gradient too.
        ctx.save_for_backward(grad.mul_(8 / total))
        return (total / (len(all_emb) * (len(all_emb) - 1))).log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None


def simcse(text_emb: Tensor, second_emb: Tensor, targets: Targets) -> Tensor:
    """Cross-entropy of each caption's first pass against the second passes of all, averaged over the captions.

    An equal caption of another image is no negative: such pairs leave the softmax.

    Args:
        text_emb: `[b, D]`, unit norm, the first passes; the same number in every process.
        second_emb: `[b, D]`, unit norm, the second passes.
        targets: of the step.
    """
    loss: Tensor = _BlockedSimCSE.apply(text_emb, second_emb, targets)
    return loss


class _BlockedSimCSE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text_emb: Tensor, second_emb: Tensor, targets: Targets) -> Tensor:
        all_emb, scaled = distributed.gather(second_emb), text_emb / SIMCSE_TEMPERATURE  # [B, D], [b, D]
        lse = torch.empty_like(scaled[:, 0])
        grad, grad_all = torch.empty_like(scaled), torch.zeros_like(all_emb)
        for block in row_blocks(len(scaled), len(all_emb), scaled.device):
            logits = targets.mask_(scaled[block] @ all_emb.T, block)  # [r, B]
            lse[block] = logits.logsumexp(1)
            softmax = logits.sub_(lse[block, None]).exp_()
            torch.mm(softmax, all_emb, out=grad[block])
            grad_all.addmm_(softmax.T, scaled[block])
        own_logits = (scaled * second_emb).sum(1)
        factor = 1 / len(all_emb)
        grad.sub_(second_emb).mul_(factor / SIMCSE_TEMPERATURE)
        grad_second = distributed.reduce_sum_(grad_all)[targets.own].sub_(scaled).mul_(factor)
        ctx.save_for_backward(grad, grad_second)
        return distributed.reduce_sum_((lse - own_logits).sum()) * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad, grad_second = ctx.saved_tensors
        return grad * grads[0], grad_second * grads[0], None
