"""What draws a caption: the part of InfoNCE that is linear in the logits.

A cross-entropy is the log-sum-exp of its logits less their mean under the target distribution, and a mean of logits is
one of pictures: so wherever the target puts its weight, a caption needs one vector and no matrix. Targets are

- of a caption: its picture, or in equal shares all pictures of the batch that carry it;
- of a picture: in equal shares its captions (Khosla et al. 2020, arXiv:2004.11362, equation 2, L_out), or all captions
  that it carries;
- each less a share E that is spread evenly over all that its softmax is over, the target among it (label smoothing:
  Szegedy et al. 2016, arXiv:1512.00567, section 7).

B pictures of a step, b captions of this process, M further pictures, D features.
"""

import torch
from torch import Tensor

from .parallel import reduce_sum_
from .targets import Bank, Targets, blocks


def attraction(targets: Targets, dtype: torch.dtype, label_smoothing: float) -> Tensor:
    """The mean of what a caption's target and its share of its pictures' targets are, `[b, D]`.

    InfoNCE is the mean over pictures of the log-sum-exps, less 1 / B times the product of this and the scaled captions.

    Args:
        targets: of the step.
        dtype: to compute in.
        label_smoothing: E.
    """
    own_emb = targets.own_emb(dtype)
    if targets.picture is None and not targets.equal_are_positive and not label_smoothing:
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
    captions, pictures = targets.equal_pairs()
    ones = torch.ones_like(captions, dtype=own_emb.dtype)
    num_pictures = torch.ones_like(shares).index_add_(0, captions, ones)  # [b], of a caption
    own_places = targets.of_captions(torch.arange(len(image_emb), device=image_emb.device))
    num_captions = image_emb.new_zeros(len(image_emb)).index_add_(0, pictures, ones)  # [B], of a picture
    num_captions = reduce_sum_(num_captions.index_add_(0, own_places, torch.ones_like(shares)))

    def weights(of: Tensor, at: Tensor) -> Tensor:
        return (shares[of] / num_pictures[of] + 1 / num_captions[at])[:, None] / 2

    every = torch.arange(len(shares), device=image_emb.device)
    wanted = own_emb * weights(every, own_places)
    return wanted.index_add_(0, captions, image_emb[pictures] * weights(captions, pictures))


def _spread(targets: Targets, dtype: torch.dtype) -> Tensor:
    """Where the whole target is spread evenly."""
    image_emb, shares = targets.image_emb.to(dtype), targets.shares(dtype)
    captions, pictures = targets.equal_pairs()
    if targets.equal_are_positive:  # and so in the softmax
        captions, pictures = captions[:0], pictures[:0]
    ones = torch.ones_like(captions, dtype=dtype)
    of_caption = image_emb.sum(0).repeat(len(shares), 1).index_add_(0, captions, -image_emb[pictures])  # [b, D]
    num_pictures = torch.full_like(shares, len(image_emb)).index_add_(0, captions, -ones)  # [b]
    if targets.bank:
        _add_bank_(of_caption, num_pictures, targets.bank)
    # A picture is held against all captions but those that it carries beside its own.
    num_captions = image_emb.new_full((len(image_emb),), len(shares)).index_add_(0, pictures, -ones)  # [B]
    num_captions = reduce_sum_(num_captions)[:, None]
    of_pictures = (image_emb / num_captions).sum(0).repeat(len(shares), 1)  # [b, D]
    of_pictures.index_add_(0, captions, -image_emb[pictures] / num_captions[pictures])
    return of_caption.mul_((shares / num_pictures)[:, None]).add_(of_pictures).div_(2)


def _add_bank_(of_caption: Tensor, num_pictures: Tensor, bank: Bank) -> None:
    """Add the further pictures that each caption is held against to their sum `[b, D]` and their number `[b]`."""
    dtype = of_caption.dtype
    counts = num_pictures.new_ones(len(bank.emb)) if bank.bias is None else (bank.bias == 0).to(dtype)  # [M]
    total = torch.zeros_like(of_caption[0])
    for block in blocks(len(bank.emb), len(total), total.device):
        total += counts[block] @ bank.emb[block].to(dtype)
    captions, pictures = torch.from_numpy(bank.masked).to(total.device)
    of_caption.add_(total).index_add_(0, captions, -bank.emb[pictures].to(dtype) * counts[pictures, None])
    num_pictures.add_(counts.sum()).index_add_(0, captions, -counts[pictures])
