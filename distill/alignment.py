"""Alignment and uniformity: captions near their pictures, and far from each other on the sphere.

Wang and Isola 2020, arXiv:2005.10242, section 4.2, with its exponents 2 and 2. Uniformity is of the captions alone: the
pictures are where they are. It runs in blocks, memory O(B D).

B pictures and captions of a step, b captions of this process, D features, r captions of a block.
"""

from typing import Any

import torch
from torch import Tensor

from . import parallel
from .targets import Targets, blocks


def alignment(text_emb: Tensor, targets: Targets) -> Tensor:
    """The mean squared distance of captions `[b, D]`, unit norm, to their pictures: 2 - 2 cos."""
    distance = (text_emb - targets.own_emb(text_emb.dtype)).square().sum(1)  # [b]
    return parallel.with_sum_of_all(targets.mean(distance))


def uniformity(text_emb: Tensor, targets: Targets) -> Tensor:
    """Logarithm of the mean of exp(-2 squared distance) over all pairs of two captions of the batch.

    Captions that read the same are pairs like others, as in the paper: their distance is 0 and has no gradient.

    Args:
        text_emb: `[b, D]`, unit norm, the same number in every process.
        targets: the pictures, for which captions are whose.
    """
    loss: Tensor = _BlockedUniformity.apply(text_emb, targets)
    return loss


class _BlockedUniformity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text_emb: Tensor, targets: Targets) -> Tensor:
        every, own = parallel.gather(text_emb), targets.own  # [B, D]
        total, grad = text_emb.new_zeros(()), torch.empty_like(text_emb)
        for block in blocks(len(text_emb), len(every), text_emb.device):
            # Of unit vectors -2 |x - y|² = 4 cos - 4: no exponential of it is above 1 or below e^-8.
            weights = (text_emb[block] @ every.T).sub_(1).mul_(4).exp_()  # [r, B]
            weights.diagonal(own.start + block.start).zero_()
            total += weights.sum()
            torch.mm(weights, every, out=grad[block])
        total = parallel.reduce_sum_(total)
        # Each pair is counted from both its ends, and its gradient too.
        ctx.save_for_backward(grad.mul_(8 / total))
        return (total / (len(every) * (len(every) - 1))).log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0], None
