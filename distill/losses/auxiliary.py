"""Two passes of each caption, which differ by dropout alone, find each other among the captions of the batch.

Gao et al. 2021, arXiv:2104.08821 (SimCSE), section 3, equation 4, in blocks: no B×B matrix is ever held. Unlike
images, captions have a gradient on both sides, so embeddings and gradients travel between processes, memory O(B D).

B captions of a step, b of this process, D features, r captions of a block.
"""

from typing import Any

import torch
from torch import Tensor

from .. import distributed as parallel
from ..data.targets import Targets, blocks


def alignment(text_emb: Tensor, targets: Targets) -> Tensor:
    """The mean squared distance of captions `[b, D]`, unit norm, to their images: 2 - 2 cos."""
    distance = (text_emb - targets.own_emb(text_emb.dtype)).square().sum(1)  # [b]
    return parallel.with_sum_of_all(targets.mean(distance))


def uniformity(text_emb: Tensor, targets: Targets) -> Tensor:
    """Logarithm of the mean of exp(-2 squared distance) over all pairs of two captions of the batch.

    Captions that read the same are pairs like others, as in the paper: their distance is 0 and has no gradient.

    Args:
        text_emb: `[b, D]`, unit norm, the same number in every process.
        targets: the images, for which captions are whose.
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


TEMPERATURE = 0.05  # theirs


def contrast_passes(text_emb: Tensor, again: Tensor, targets: Targets) -> Tensor:
    """Cross-entropy of each caption's first pass against the second passes of all, averaged over the captions.

    A caption is no negative of another that describes its image too: such pairs leave the softmax.

    Args:
        text_emb: `[b, D]`, unit norm, the first passes; the same number in every process.
        again: `[b, D]`, unit norm, the second passes.
        targets: the images, for which captions are whose.
    """
    loss: Tensor = _BlockedPasses.apply(text_emb, again, targets)
    return loss


class _BlockedPasses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, text_emb: Tensor, again: Tensor, targets: Targets) -> Tensor:
        every, scaled = parallel.gather(again), text_emb / TEMPERATURE  # [B, D], [b, D]
        lse = torch.empty_like(scaled[:, 0])
        grad, grad_every = torch.empty_like(scaled), torch.zeros_like(every)
        for block in blocks(len(scaled), len(every), scaled.device):
            logits = targets.mask_(scaled[block] @ every.T, block)  # [r, B]
            lse[block] = logits.logsumexp(1)
            softmax = logits.sub_(lse[block, None]).exp_()
            torch.mm(softmax, every, out=grad[block])
            grad_every.addmm_(softmax.T, scaled[block])
        own_logits = (scaled * again).sum(1)
        factor = 1 / len(every)
        grad.sub_(again).mul_(factor / TEMPERATURE)
        grad_again = parallel.reduce_sum_(grad_every)[targets.own].sub_(scaled).mul_(factor)
        ctx.save_for_backward(grad, grad_again)
        return parallel.reduce_sum_((lse - own_logits).sum()) * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad, grad_again = ctx.saved_tensors
        return grad * grads[0], grad_again * grads[0], None
