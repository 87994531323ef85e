"""InfoNCE, symmetric, with a learned temperature, in blocks: no B×B matrix is ever held.

The loss of CLIP: Radford et al. 2021, arXiv:2103.00020, section 2.3 and figure 3. The softmax's normalisers are summed
up block by block, and the logits are computed again in the backward pass, as attention does it in Dao et al. 2022,
arXiv:2205.14135, section 3. Images are constants, so the gradient has one side only.

B images of a step, b captions of this process, D features, r captions of a block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..data.targets import Bank, Targets, blocks
from ..distributed import reduce_max_, reduce_sum_
from .loss import Loss

LOWEST = -1e30  # below every logit, and yet no infinity that would make NaN of a difference


@dataclass(frozen=True, slots=True)
class Negatives:
    """What a softmax over a bank comes to.

    Attributes:
        lse: `[b]`, log-sum-exp of each caption's logits.
        mean: `[b, D]`, the images weighted by its softmax: the derivative of `lse` by the scaled caption.
    """

    lse: Tensor
    mean: Tensor


def bank_log_sum_exp(scaled: Tensor, bank: Bank) -> Negatives:
    """Attend from each caption to a bank whose keys are its values, in blocks with a running maximum.

    Dao et al. 2022, arXiv:2205.14135, algorithm 1, with one query block.

    Args:
        scaled: `[b, D]`, text embeddings times the logit scale.
        bank: M images.
    """
    largest = scaled.new_full((len(scaled),), LOWEST)
    total, mean = torch.zeros_like(largest), torch.zeros_like(scaled)
    for block in blocks(len(bank.emb), len(scaled), scaled.device):
        image_emb = bank.emb[block].to(scaled.dtype)
        logits = scaled @ image_emb.T if bank.bias is None else torch.addmm(bank.bias[block], scaled, image_emb.T)
        start, end = bank.masked[1].searchsorted([block.start, block.stop])
        if end > start:
            rows, columns = torch.from_numpy(bank.masked[:, start:end]).to(scaled.device)
            logits[rows, columns - block.start] = -torch.inf
        before, largest = largest, torch.maximum(largest, logits.amax(1))
        weights, kept = logits.sub_(largest[:, None]).exp_(), (before - largest).exp_()
        total.mul_(kept).add_(weights.sum(1))
        mean.mul_(kept[:, None]).addmm_(weights, image_emb)
    # With nothing left to attend to, the sum is 0 and its logarithm -inf: no weight at all.
    return Negatives(total.log() + largest, mean.div_(total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]))


def positive_term(targets: Targets, dtype: torch.dtype, label_smoothing: float) -> Tensor:
    """The mean of what a caption's target and its share of its images' targets are, `[b, D]`.

    InfoNCE is the mean over images of the log-sum-exps, less 1 / B times the product of this and the scaled captions.

    Args:
        targets: of the step.
        dtype: to compute in.
        label_smoothing: E.
    """
    own_emb = targets.own_emb(dtype)
    if targets.image is None and not targets.equal_are_positive and not label_smoothing:
        return own_emb
    wanted = _wanted(targets, own_emb)
    if not label_smoothing:
        return wanted
    return wanted.mul_(1 - label_smoothing).add_(_spread(targets, dtype), alpha=label_smoothing)


def _wanted(targets: Targets, own_emb: Tensor) -> Tensor:
    """Without smoothing."""
    shares = targets.shares(own_emb.dtype)
    if not targets.equal_are_positive:
        return own_emb * shares[:, None]
    image_emb = targets.image_emb.to(own_emb.dtype)
    captions, images = targets.equal_pairs()
    ones = torch.ones_like(captions, dtype=own_emb.dtype)
    num_pictures = torch.ones_like(shares).index_add_(0, captions, ones)  # [b], of a caption
    own_places = targets.of_captions(torch.arange(len(image_emb), device=image_emb.device))
    num_captions = image_emb.new_zeros(len(image_emb)).index_add_(0, images, ones)  # [B], of an image
    num_captions = reduce_sum_(num_captions.index_add_(0, own_places, torch.ones_like(shares)))

    def weights(of: Tensor, at: Tensor) -> Tensor:
        return (shares[of] / num_pictures[of] + 1 / num_captions[at])[:, None] / 2

    every = torch.arange(len(shares), device=image_emb.device)
    wanted = own_emb * weights(every, own_places)
    return wanted.index_add_(0, captions, image_emb[images] * weights(captions, images))


def _spread(targets: Targets, dtype: torch.dtype) -> Tensor:
    """Where the whole target is spread evenly."""
    image_emb, shares = targets.image_emb.to(dtype), targets.shares(dtype)
    captions, images = targets.equal_pairs()
    if targets.equal_are_positive:  # and so in the softmax
        captions, images = captions[:0], images[:0]
    ones = torch.ones_like(captions, dtype=dtype)
    of_caption = image_emb.sum(0).repeat(len(shares), 1).index_add_(0, captions, -image_emb[images])  # [b, D]
    num_pictures = torch.full_like(shares, len(image_emb)).index_add_(0, captions, -ones)  # [b]
    if targets.bank:
        _add_bank_(of_caption, num_pictures, targets.bank)
    # An image is held against all captions but those that it carries beside its own.
    num_captions = image_emb.new_full((len(image_emb),), len(shares)).index_add_(0, images, -ones)  # [B]
    num_captions = reduce_sum_(num_captions)[:, None]
    of_images = (image_emb / num_captions).sum(0).repeat(len(shares), 1)  # [b, D]
    of_images.index_add_(0, captions, -image_emb[images] / num_captions[images])
    return of_caption.mul_((shares / num_pictures)[:, None]).add_(of_images).div_(2)


def _add_bank_(of_caption: Tensor, num_pictures: Tensor, bank: Bank) -> None:
    """Add the further images that each caption is held against to their sum `[b, D]` and their number `[b]`."""
    dtype = of_caption.dtype
    counts = num_pictures.new_ones(len(bank.emb)) if bank.bias is None else (bank.bias == 0).to(dtype)  # [M]
    total = torch.zeros_like(of_caption[0])
    for block in blocks(len(bank.emb), len(total), total.device):
        total += counts[block] @ bank.emb[block].to(dtype)
    captions, images = torch.from_numpy(bank.masked).to(total.device)
    of_caption.add_(total).index_add_(0, captions, -bank.emb[images].to(dtype) * counts[images, None])
    num_pictures.add_(counts.sum()).index_add_(0, captions, -counts[images])


# On the CPU one exponential serves rows and columns: exp(logit - shift), the shift being this far below the block's
# largest logit. Sums of 2^20 of them stay below float32's e^88, and logits 157 below the largest above its e^-87.
SHIFT = 70.0
SMALLEST = math.exp(-SHIFT)  # a smaller sum may have lost what lies below e^-87


class InfoNCE(Loss):
    """Cross-entropy of each caption against the batch's images and of each image against the batch's captions.

    An image is no negative of a caption that it carries itself: such pairs leave both softmaxes, or are drawn
    together; see `positive_term` for the targets. Each image counts the same, however many captions of it there are.

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
        wanted = positive_term(targets, scaled.dtype, label_smoothing)  # [b, D]
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

        negatives = bank_log_sum_exp(scaled, targets.bank) if targets.bank else None
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
