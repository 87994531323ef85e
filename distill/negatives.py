"""Captions against pictures of the cache beyond the batch: exact, without gradient on their side, in one pass."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .targets import Bank, blocks

LOWEST = -1e30  # below every logit, and yet no infinity that would make NaN of a difference


@dataclass(frozen=True, slots=True)
class Negatives:
    """What a softmax over a bank comes to.

    Attributes:
        lse: `[b]`, log-sum-exp of each caption's logits.
        mean: `[b, D]`, the pictures weighted by its softmax: the derivative of `lse` by the scaled caption.
    """

    lse: Tensor
    mean: Tensor


def attend_to_negatives(scaled: Tensor, bank: Bank) -> Negatives:
    """Attend from each caption to a bank whose keys are its values, in blocks with a running maximum.

    Dao et al. 2022, arXiv:2205.14135, algorithm 1, with one query block.

    Args:
        scaled: `[b, D]`, text embeddings times the logit scale.
        bank: M pictures.
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
