"""InfoNCE, symmetric, with a learned temperature, in blocks: no B×B matrix is ever held.

The loss of CLIP: Radford et al. 2021, arXiv:2103.00020, section 2.3 and figure 3. The softmax's normalisers are summed
up block by block, and the logits are computed again in the backward pass, as attention does it in Dao et al. 2022,
arXiv:2205.14135, section 3. Pictures are constants, so the gradient has one side only.

B pictures of a step, b captions of this process, D features, r captions of a block.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .attraction import attraction
from .loss import Loss
from .negatives import attend_to_negatives
from .parallel import reduce_max_, reduce_sum_
from .targets import Targets, blocks

# On the CPU one exponential serves rows and columns: exp(logit - shift), the shift being this far below the block's
# largest logit. Sums of 2^20 of them stay below float32's e^88, and logits 157 below the largest above its e^-87.
SHIFT = 70.0
SMALLEST = math.exp(-SHIFT)  # a smaller sum may have lost what lies below e^-87


class InfoNCE(Loss):
    """Cross-entropy of each caption against the batch's pictures and of each picture against the batch's captions.

    A picture is no negative of a caption that it carries itself: such pairs leave both softmaxes, or are drawn
    together; see `attraction` for the targets. Each picture counts the same, however many captions of it there are.

    >>> loss = InfoNCE(temperature=0.07, max_logit_scale=100.0)
    >>> round(loss.logit_scale.exp().item(), 2)
    14.29
    """

    def __init__(
        self, *, temperature: float, max_logit_scale: float, label_smoothing: float = 0.0, compiled: bool = False
    ) -> None:
        """Begin at a temperature; `compiled` fuses the passes over a block's logits on a GPU."""
        super().__init__(temperature=temperature, max_logit_scale=max_logit_scale)
        self._label_smoothing, self._compiled = label_smoothing, compiled

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """The mean loss of a batch; see `Loss.forward`."""
        loss: Tensor = _BlockedInfoNCE.apply(text_emb, self.logit_scale, targets, self._label_smoothing, self._compiled)
        return loss


class _BlockedInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, text_emb: Tensor, log_scale: Tensor, targets: Targets, label_smoothing: float, compiled: bool
    ) -> Tensor:
        image_emb, scaled = targets.image_emb.to(text_emb.dtype), text_emb * log_scale.exp()
        wanted = attraction(targets, scaled.dtype, label_smoothing)  # [b, D]
        wanted_logits = (scaled * wanted).sum(1)  # [b]
        row_lse = torch.empty_like(wanted_logits)
        column_lse = wanted_logits.new_full((len(image_emb),), -math.inf)
        log_sum_exp, _ = _block_functions(scaled.is_cuda, compiled)
        for block in blocks(len(scaled), len(image_emb), scaled.device):
            logits = targets.mask_unless_positive_(scaled[block] @ image_emb.T, block)  # [r, B]
            row_lse[block], columns = log_sum_exp(logits)
            column_lse = torch.logaddexp(column_lse, columns)
        largest = reduce_max_(column_lse.clone())
        column_lse = reduce_sum_((column_lse - largest).exp_()).log_().add_(largest)

        negatives = attend_to_negatives(scaled, targets.bank) if targets.bank else None
        if negatives:
            row_lse = torch.logaddexp(row_lse, negatives.lse)
        shares = targets.shares(scaled.dtype)
        # In the backward pass a caption's softmax counts by its share, which is to say by a larger normaliser.
        ctx.save_for_backward(text_emb, log_scale, row_lse - shares.log(), column_lse, wanted)
        ctx.targets, ctx.negatives, ctx.compiled = targets, negatives, compiled
        losses = shares * (row_lse + targets.of_captions(column_lse)) - 2 * wanted_logits
        return reduce_sum_(losses.sum()) / (2 * len(image_emb))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        text_emb, log_scale, row_lse, column_lse, wanted = ctx.saved_tensors
        targets, negatives, scale = ctx.targets, ctx.negatives, log_scale.exp()
        image_emb, scaled = targets.image_emb.to(text_emb.dtype), text_emb * scale
        grad = torch.empty_like(text_emb)
        _, softmaxes = _block_functions(scaled.is_cuda, ctx.compiled)
        for block in blocks(len(scaled), len(image_emb), scaled.device):
            logits = targets.mask_unless_positive_(scaled[block] @ image_emb.T, block)
            torch.mm(softmaxes(logits, row_lse[block], column_lse), image_emb, out=grad[block])
        if negatives:
            grad.addcmul_(negatives.mean, (negatives.lse - row_lse).exp_()[:, None])
        grad.sub_(wanted, alpha=2).mul_(grads[0] * scale / (2 * len(image_emb)))
        # To scale all logits is to scale all captions, and the derivative of that is at hand.
        return grad, reduce_sum_((grad * text_emb).sum()), None, None, None


LogSumExp = Callable[[Tensor], tuple[Tensor, Tensor]]
Softmaxes = Callable[[Tensor, Tensor, Tensor], Tensor]


@cache
def _block_functions(is_cuda: bool, compiled: bool) -> tuple[LogSumExp, Softmaxes]:
    """How a block's logits become log-sum-exps, and gradients of those."""
    if not is_cuda:
        return _shared_log_sum_exp, _shared_softmaxes
    if not compiled:
        return _plain_log_sum_exp, _plain_softmaxes
    return torch.compile(_plain_log_sum_exp), torch.compile(_plain_softmaxes)


def _plain_log_sum_exp(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of each row `[r]` and each column `[B]` of a block `[r, B]`."""
    return logits.logsumexp(1), logits.logsumexp(0)


def _plain_softmaxes(logits: Tensor, row_lse: Tensor, column_lse: Tensor) -> Tensor:
    """The sum of both softmaxes of a block, `[r, B]`: the derivative of all log-sum-exps by its logits."""
    return (logits - row_lse[:, None]).exp() + (logits - column_lse).exp()


def _shared_log_sum_exp(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The plain form with one exponential for both, where it keeps precision."""
    shift = logits.max() - SHIFT
    weights = (logits - shift).exp_()
    rows, columns = weights.sum(1), weights.sum(0)
    if min(rows.min(), columns.min()) < SMALLEST:
        return _plain_log_sum_exp(logits)
    return rows.log_().add_(shift), columns.log_().add_(shift)


def _shared_softmaxes(logits: Tensor, row_lse: Tensor, column_lse: Tensor) -> Tensor:
    """The plain form with one exponential for both, where it cannot overflow; overwrites the logits."""
    shift = logits.max() - SHIFT
    if shift - min(row_lse.min(), column_lse.min()) > SHIFT:
        return _plain_softmaxes(logits, row_lse, column_lse)
    weights = logits.sub_(shift).exp_()
    return weights.mul_((shift - row_lse).exp_()[:, None] + (shift - column_lse).exp_())
