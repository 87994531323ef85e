"""Plain forms of the losses, a whole matrix of logits at once, for holding the fast ones to."""

from typing import Any

import torch
import torch.nn.functional as F
from clipglot.distill.data.targets import Targets
from torch import Tensor


def unit(rows: int, dim: int, seed: int) -> Tensor:
    """Random directions `[rows, dim] float64`."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def targets(image_emb: Tensor, **more: Any) -> Targets:
    """Images of a step of one process; `more` fields of `Targets`."""
    return Targets(**{"image_emb": image_emb, "own": slice(0, len(image_emb))} | more)


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    """Of a loss by each of some tensors."""
    return list(torch.autograd.grad(loss, of, retain_graph=True))


def require_equal(loss: Tensor, expected: Tensor, *of: Tensor) -> None:
    """The same value, and the same gradients by each of some tensors."""
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients(3 * loss, *of), gradients(3 * expected, *of), rtol=1e-9, atol=1e-12)


def plain_infonce(
    text_emb: Tensor,
    image_emb: Tensor,
    scale: Tensor,
    *,
    image: Tensor,
    equal: Tensor,
    positive: bool = False,
    smoothing: float = 0.0,
    further: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """InfoNCE with a whole matrix of logits `[n, B]` and of targets.

    Args:
        text_emb: `[n, D]`.
        image_emb: `[B, D]`.
        scale: on cosines.
        image: `[n]`, of each caption.
        equal: `[n, B] bool`, other images that carry the caption.
        positive: whether these are right, or left out.
        smoothing: share of a target that is spread evenly.
        further: `[M, D]`, images beyond the batch.
        allowed: `[n, M] bool`, which of them are negatives.
    """
    further = image_emb[:0] if further is None else further
    allowed = torch.ones(len(text_emb), len(further), dtype=torch.bool) if allowed is None else allowed
    own = F.one_hot(image, len(image_emb)).double()
    right, counted = (own + equal, torch.ones_like(equal)) if positive else (own, ~equal)
    logits = (scale * text_emb @ image_emb.T).masked_fill(~counted, -1e9)
    beyond = (scale * text_emb @ further.T).masked_fill(~allowed, -1e9)
    every = torch.cat([counted, allowed], 1).double()
    of_texts = (1 - smoothing) * F.pad(right / right.sum(1, keepdim=True), (0, len(further)))
    of_texts = of_texts + smoothing * every / every.sum(1, keepdim=True)
    of_images = (1 - smoothing) * right / right.sum(0) + smoothing * counted.double() / counted.sum(0)
    by_text = -(of_texts * torch.cat([logits, beyond], 1).log_softmax(1)).sum(1) / own.sum(0)[image]  # [n]
    by_image = -(of_images * logits.log_softmax(0)).sum()
    return (by_text.sum() + by_image) / (2 * len(image_emb))


def same_groups(groups: list[int]) -> Tensor:
    """`[B, B] bool`: pairs of a caption and another image that carries the same."""
    ids = torch.tensor(groups)
    return (ids[:, None] == ids).fill_diagonal_(False)
