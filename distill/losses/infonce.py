"""InfoNCE, symmetric, with a learned temperature, in blocks: no B×B matrix is ever held.

The loss of CLIP: Radford et al. 2021, arXiv:2103.00020, section 2.3 and figure 3. A cross-entropy is the log-sum-exp of
its logits less their mean under the target distribution. So it has three parts:

- log-sum-exps over the batch, summed up block by block; the logits are computed again in the backward pass, as for
  attention in Dao et al. 2022, arXiv:2205.14135, section 3, unless one block holds them all;
- log-sum-exps over a bank of further images (`bank_log_sum_exp`);
- the positive term (`positive_term`): a mean of logits is the logit of a mean of images, so the targets of a caption
  are one vector and no matrix.

Images are constants, so gradients flow to the captions alone.

B images of a step, b captions of this process, M images of the bank, P pairs, D features, r captions of a block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor

from ..data.targets import Bank, Targets, row_blocks
from ..distributed import reduce_max_, reduce_sum_
from ..train_settings import LossSettings
from .loss import Loss

LOWEST = -1e30  # below every logit; unlike -inf it makes no NaN of a difference
# On the CPU one exponential serves rows and columns: exp(logit - shift), with a shift this far below the block's
# largest logit. Sums of 2^20 of them stay below float32's e^88, and logits 157 below the largest stay above its e^-87.
SHIFT = 70.0
SMALLEST = math.exp(-SHIFT)  # a smaller sum may have lost terms below e^-87


class InfoNCE(Loss):
    """Cross-entropy of each caption against the batch's images and of each image against the batch's captions.

    An image is no negative of a caption that it has itself: such pairs leave both softmaxes, or are positives; see
    `positive_term` for the targets. Each image counts the same, for any number of captions.

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

    @classmethod
    def from_settings(cls, settings: LossSettings, *, compiled: bool = False) -> Self:
        """The loss that a run asks for."""
        return cls(
            temperature=settings.resolved_temperature,
            max_logit_scale=settings.max_logit_scale,
            label_smoothing=settings.label_smoothing,
            compiled=compiled,
        )

    def forward(self, text_emb: Tensor, targets: Targets) -> Tensor:
        """Mean loss of a batch; see `Loss.forward`."""
        loss: Tensor = _BlockedInfoNCE.apply(text_emb, self.logit_scale, targets, self._label_smoothing, self._compiled)
        return loss


class _BlockedInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, text_emb: Tensor, log_scale: Tensor, targets: Targets, label_smoothing: float, compiled: bool
    ) -> Tensor:
        image_emb, scaled = targets.image_emb.to(text_emb.dtype), text_emb * log_scale.exp()
        positive = positive_term(targets, scaled.dtype, label_smoothing)  # [b, D]
        positive_logits = (scaled * positive).sum(1)  # [b]
        row_lse = torch.empty_like(positive_logits)
        column_lse = positive_logits.new_full((len(image_emb),), -math.inf)
        log_sum_exp, _ = _block_functions(scaled.is_cuda, compiled)
        blocks = [*row_blocks(len(scaled), len(image_emb), scaled.device)]
        exponentials = None
        for block in blocks:
            logits = targets.mask_unless_positive_(scaled[block] @ image_emb.T, block)  # [r, B]
            row_lse[block], block_column_lse, exponentials = log_sum_exp(logits)
            column_lse = torch.logaddexp(column_lse, block_column_lse)
        largest = reduce_max_(column_lse.clone())
        column_lse = reduce_sum_((column_lse - largest).exp_()).log_().add_(largest)

        negatives = bank_log_sum_exp(scaled, targets.bank) if targets.bank else None
        if negatives:
            row_lse = torch.logaddexp(row_lse, negatives.lse)
        weights = targets.weights(scaled.dtype)
        # In the backward pass a caption's softmax counts by its weight, which is to say with a larger normaliser.
        ctx.save_for_backward(text_emb, log_scale, row_lse - weights.log(), column_lse, positive)
        ctx.targets, ctx.negatives, ctx.compiled = targets, negatives, compiled
        ctx.exponentials = exponentials if len(blocks) == 1 else None
        losses = weights * (row_lse + targets.of_captions(column_lse)) - 2 * positive_logits
        return reduce_sum_(losses.sum()) / (2 * len(image_emb))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        text_emb, log_scale, row_lse, column_lse, positive = ctx.saved_tensors
        targets, negatives, scale = ctx.targets, ctx.negatives, log_scale.exp()
        image_emb, scaled = targets.image_emb.to(text_emb.dtype), text_emb * scale
        grad = torch.empty_like(text_emb)
        _, softmaxes = _block_functions(scaled.is_cuda, ctx.compiled)
        for block in row_blocks(len(scaled), len(image_emb), scaled.device):
            weights = ctx.exponentials and ctx.exponentials.softmaxes(row_lse, column_lse)
            if weights is None:
                logits = targets.mask_unless_positive_(scaled[block] @ image_emb.T, block)
                weights = softmaxes(logits, row_lse[block], column_lse)
            torch.mm(weights, image_emb, out=grad[block])
        if negatives:
            grad.addcmul_(negatives.mean, (negatives.lse - row_lse).exp_()[:, None])
        grad.sub_(positive, alpha=2).mul_(grads[0] * scale / (2 * len(image_emb)))
        # To scale all logits is to scale all captions, so the scale's derivative follows from theirs.
        return grad, reduce_sum_((grad * text_emb).sum()), None, None, None


@dataclass(frozen=True, slots=True)
class Exponentials:
    """exp(logit - shift) of a block: one exponential for rows and columns, log-sum-exps and their gradients.

    Attributes:
        values: `[r, B]`.
        shift: a scalar.
    """

    values: Tensor
    shift: Tensor

    @classmethod
    def of(cls, logits: Tensor) -> Self:
        """Those of a block of logits `[r, B]`."""
        shift = logits.max() - SHIFT
        return cls((logits - shift).exp_(), shift)

    def log_sum_exp(self) -> tuple[Tensor, Tensor] | None:
        """Log-sum-exp of each row `[r]` and each column `[B]`; None where a sum has lost precision."""
        rows, columns = self.values.sum(1), self.values.sum(0)
        if min(rows.min(), columns.min()) < SMALLEST:
            return None
        return rows.log_().add_(self.shift), columns.log_().add_(self.shift)

    def softmaxes(self, row_lse: Tensor, column_lse: Tensor) -> Tensor | None:
        """Sum of both softmaxes `[r, B]`; None where it could overflow."""
        if self.shift - min(row_lse.min(), column_lse.min()) > SHIFT:
            return None
        return self.values * ((self.shift - row_lse).exp_()[:, None] + (self.shift - column_lse).exp_())


LogSumExp = Callable[[Tensor], tuple[Tensor, Tensor, Exponentials | None]]
Softmaxes = Callable[[Tensor, Tensor, Tensor], Tensor]


@cache
def _block_functions(is_cuda: bool, compiled: bool) -> tuple[LogSumExp, Softmaxes]:
    """Functions that make log-sum-exps of a block's logits, and gradients of those."""
    if not is_cuda:
        return _shared_log_sum_exp, _shared_softmaxes
    if not compiled:
        return _plain_log_sum_exp, _plain_softmaxes
    return torch.compile(_plain_log_sum_exp), torch.compile(_plain_softmaxes)


def _plain_log_sum_exp(logits: Tensor) -> tuple[Tensor, Tensor, None]:
    """Log-sum-exp of each row `[r]` and each column `[B]` of a block `[r, B]`."""
    return logits.logsumexp(1), logits.logsumexp(0), None


def _plain_softmaxes(logits: Tensor, row_lse: Tensor, column_lse: Tensor) -> Tensor:
    """Sum of both softmaxes of a block, `[r, B]`: the derivative of all log-sum-exps by its logits."""
    return (logits - row_lse[:, None]).exp() + (logits - column_lse).exp()


def _shared_log_sum_exp(logits: Tensor) -> tuple[Tensor, Tensor, Exponentials | None]:
    """As the plain form, with one exponential for both where that keeps precision."""
    exponentials = Exponentials.of(logits)
    sums = exponentials.log_sum_exp()
    return (*sums, exponentials) if sums else _plain_log_sum_exp(logits)


def _shared_softmaxes(logits: Tensor, row_lse: Tensor, column_lse: Tensor) -> Tensor:
    """As the plain form, with one exponential for both where that cannot overflow."""
    weights = Exponentials.of(logits).softmaxes(row_lse, column_lse)
    return _plain_softmaxes(logits, row_lse, column_lse) if weights is None else weights


@dataclass(frozen=True, slots=True)
class BankSoftmax:
    """Softmax of captions over a bank.

    Attributes:
        lse: `[b]`, log-sum-exp of each caption's logits.
        mean: `[b, D]`, mean of the images under its softmax: the derivative of `lse` by the scaled caption.
    """

    lse: Tensor
    mean: Tensor


def bank_log_sum_exp(scaled: Tensor, bank: Bank) -> BankSoftmax:
    """Attention of each caption to a bank whose keys are its values, in blocks with a running maximum.

    Exact, in one pass, and without gradient to the bank: Dao et al. 2022, arXiv:2205.14135, algorithm 1, with one query
    block.

    Args:
        scaled: `[b, D]`, text embeddings times the logit scale.
        bank: M images.
    """
    largest = scaled.new_full((len(scaled),), LOWEST)
    total, mean = torch.zeros_like(largest), torch.zeros_like(scaled)
    for block in row_blocks(len(bank.emb), len(scaled), scaled.device):
        image_emb = bank.emb[block].to(scaled.dtype)
        logits = scaled @ image_emb.T if bank.bias is None else torch.addmm(bank.bias[block], scaled, image_emb.T)
        start, end = bank.masked[1].searchsorted([block.start, block.stop])
        if end > start:
            rows, columns = torch.from_numpy(bank.masked[:, start:end]).to(scaled.device)
            logits[rows, columns - block.start] = -torch.inf
        before, largest = largest, torch.maximum(largest, logits.amax(1))
        weights, rescale = logits.sub_(largest[:, None]).exp_(), (before - largest).exp_()
        total.mul_(rescale).add_(weights.sum(1))
        mean.mul_(rescale[:, None]).addmm_(weights, image_emb)
    # If all images are masked, the sum is 0 and its logarithm -inf: no weight at all.
    return BankSoftmax(total.log() + largest, mean.div_(total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]))


def positive_term(targets: Targets, dtype: torch.dtype, label_smoothing: float) -> Tensor:
    """Positive term of InfoNCE: mean image under the targets of each caption, `[b, D]`.

    InfoNCE is the mean over images of both log-sum-exps, less 1 / B times the product of this term and the scaled
    captions. The targets are

    - of a caption: its image, or in equal parts all images of the batch that have it;
    - of an image: in equal parts its captions (Khosla et al. 2020, arXiv:2004.11362, equation 2, L_out), or all
      captions of the batch that it has;
    - each less a share E that is spread evenly over all candidates of its softmax, the target among them (label
      smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7).

    Args:
        targets: of the step.
        dtype: to compute in.
        label_smoothing: E.
    """
    own_emb = targets.own_emb(dtype)
    if targets.image is None and not targets.equal_are_positive and not label_smoothing:
        return own_emb
    positive = _positive_mean(targets, own_emb)
    if not label_smoothing:
        return positive
    return positive.mul_(1 - label_smoothing).add_(_candidate_mean(targets, dtype), alpha=label_smoothing)


def _positive_mean(targets: Targets, own_emb: Tensor) -> Tensor:
    """Mean of the positives, `[b, D]`: the positive term without smoothing."""
    weights = targets.weights(own_emb.dtype)
    if not targets.equal_are_positive:
        return own_emb * weights[:, None]
    image_emb = targets.image_emb.to(own_emb.dtype)
    captions, images = targets.equal_pairs()
    ones = torch.ones_like(captions, dtype=own_emb.dtype)
    num_images = torch.ones_like(weights).index_add_(0, captions, ones)  # [b], that have a caption
    own_images = targets.of_captions(torch.arange(len(image_emb), device=image_emb.device))
    num_captions = image_emb.new_zeros(len(image_emb)).index_add_(0, images, ones)  # [B], of an image
    num_captions = reduce_sum_(num_captions.index_add_(0, own_images, torch.ones_like(weights)))

    def pair_weights(captions: Tensor, images: Tensor) -> Tensor:
        return (weights[captions] / num_images[captions] + 1 / num_captions[images])[:, None] / 2

    own_captions = torch.arange(len(weights), device=image_emb.device)
    positive = own_emb * pair_weights(own_captions, own_images)
    return positive.index_add_(0, captions, image_emb[images] * pair_weights(captions, images))


def _candidate_mean(targets: Targets, dtype: torch.dtype) -> Tensor:
    """Mean of all candidates, `[b, D]`: the positive term where the whole target is spread evenly."""
    image_emb, weights = targets.image_emb.to(dtype), targets.weights(dtype)
    captions, images = targets.equal_pairs()
    if targets.equal_are_positive:  # and so in the softmax
        captions, images = captions[:0], images[:0]
    ones = torch.ones_like(captions, dtype=dtype)
    of_caption = image_emb.sum(0).repeat(len(weights), 1).index_add_(0, captions, -image_emb[images])  # [b, D]
    num_images = torch.full_like(weights, len(image_emb)).index_add_(0, captions, -ones)  # [b]
    if targets.bank:
        _add_bank_(of_caption, num_images, targets.bank)
    # Candidates of an image are all captions but equal ones of other images.
    num_captions = image_emb.new_full((len(image_emb),), len(weights)).index_add_(0, images, -ones)  # [B]
    num_captions = reduce_sum_(num_captions)[:, None]
    of_images = (image_emb / num_captions).sum(0).repeat(len(weights), 1)  # [b, D]
    of_images.index_add_(0, captions, -image_emb[images] / num_captions[images])
    return of_caption.mul_((weights / num_images)[:, None]).add_(of_images).div_(2)


def _add_bank_(of_caption: Tensor, num_images: Tensor, bank: Bank) -> None:
    """Add the bank's candidates of each caption to their sum `[b, D]` and their number `[b]`."""
    dtype = of_caption.dtype
    counts = num_images.new_ones(len(bank.emb)) if bank.bias is None else (bank.bias == 0).to(dtype)  # [M]
    total = torch.zeros_like(of_caption[0])
    for block in row_blocks(len(bank.emb), len(total), total.device):
        total += counts[block] @ bank.emb[block].to(dtype)
    captions, images = torch.from_numpy(bank.masked).to(total.device)
    of_caption.add_(total).index_add_(0, captions, -bank.emb[images].to(dtype) * counts[images, None])
    num_images.add_(counts.sum()).index_add_(0, captions, -counts[images])
