"""Plain forms of the losses with a whole matrix of logits, which the blocked forms must equal."""

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
    """Targets of a step of one process; `more` are fields of `Targets`."""
    return Targets(**{"image_emb": image_emb, "own": slice(0, len(image_emb))} | more)


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    """Gradients of a loss by some tensors."""
    return list(torch.autograd.grad(loss, of, retain_graph=True))


def require_equal(loss: Tensor, expected: Tensor, *of: Tensor) -> None:
    """Require the same value, and the same gradients by some tensors."""
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients(3 * loss, *of), gradients(3 * expected, *of), rtol=1e-9, atol=1e-12)


def plain_infonce(
    text_emb: Tensor,
    image_emb: Tensor,
    scale: Tensor,
    *,
    equal: Tensor,
    image: Tensor | None = None,
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
        equal: `[n, B] bool`, pairs of a caption and another image that has it.
        image: `[n]`, index of each caption's image; by default each image has one caption.
        positive: whether such pairs are positives, or left out.
        smoothing: share of a target that is spread evenly.
        further: `[M, D]`, images beyond the batch.
        allowed: `[n, M] bool`, further images that are negatives.
    """
    image = torch.arange(len(text_emb)) if image is None else image
    further = image_emb[:0] if further is None else further
    allowed = torch.ones(len(text_emb), len(further), dtype=torch.bool) if allowed is None else allowed
    own = F.one_hot(image, len(image_emb)).double()
    positives, candidates = (own + equal, torch.ones_like(equal)) if positive else (own, ~equal)
    logits = (scale * text_emb @ image_emb.T).masked_fill(~candidates, -1e9)
    further_logits = (scale * text_emb @ further.T).masked_fill(~allowed, -1e9)
    all_candidates = torch.cat([candidates, allowed], 1).double()
    text_targets = (1 - smoothing) * F.pad(positives / positives.sum(1, keepdim=True), (0, len(further)))
    text_targets = text_targets + smoothing * all_candidates / all_candidates.sum(1, keepdim=True)
    image_targets = (1 - smoothing) * positives / positives.sum(0) + smoothing * candidates.double() / candidates.sum(0)
    text_losses = -(text_targets * torch.cat([logits, further_logits], 1).log_softmax(1)).sum(1)  # [n]
    image_loss = -(image_targets * logits.log_softmax(0)).sum()
    return ((text_losses / own.sum(0)[image]).sum() + image_loss) / (2 * len(image_emb))


def plain_siglip(
    text_emb: Tensor,
    image_emb: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    equal: Tensor,
    image: Tensor | None = None,
    positive: bool = False,
) -> Tensor:
    """SigLIP with a whole matrix of logits `[n, B]`; arguments as of `plain_infonce`, and the bias of the logits."""
    image = torch.arange(len(text_emb)) if image is None else image
    own = F.one_hot(image, len(image_emb)).double()
    logits = scale * text_emb @ image_emb.T + bias
    sign = 2 * (own + equal) - 1 if positive else (2 * own - 1) * ~equal  # 0 for pairs that are left out
    weights = 1 / own.sum(0)[image]
    return -(weights[:, None] * sign.abs() * F.logsigmoid(sign * logits)).sum() / len(image_emb)


def plain_similarity(
    text_emb: Tensor, image_emb: Tensor, scale: Tensor, temperature: float, *, equal: Tensor
) -> Tensor:
    """Distillation of similarities with whole matrices, given the teacher's temperature; see `plain_infonce`."""
    student = (scale * text_emb @ image_emb.T).masked_fill(equal, -1e9).log_softmax(1)
    teacher = (image_emb @ image_emb.T / temperature).masked_fill(equal, -1e9).softmax(1)
    return F.kl_div(student, teacher, reduction="batchmean")


def equal_pairs(groups: list[int]) -> Tensor:
    """`[B, B] bool`: pairs of a caption and another image with an equal caption, given the group of each caption."""
    ids = torch.tensor(groups)
    return (ids[:, None] == ids).fill_diagonal_(False)
