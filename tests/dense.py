"""Plain forms of the losses, a whole matrix of logits at once, for holding the fast ones to."""

from typing import Any

import torch
import torch.nn.functional as F
from clipglot.distill.targets import Targets
from torch import Tensor


def unit(rows: int, dim: int, seed: int) -> Tensor:
    """Random directions `[rows, dim] float64`."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=-1)


def targets(image_emb: Tensor, **more: Any) -> Targets:
    """Pictures of a step of one process; `more` fields of `Targets`."""
    return Targets(**{"image_emb": image_emb, "own": slice(0, len(image_emb))} | more)


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    """Of a loss by each of some tensors."""
    return list(torch.autograd.grad(loss, of, retain_graph=True))


def same_groups(groups: list[int]) -> Tensor:
    """`[B, B] bool`: pairs of a caption and another picture that carries the same."""
    ids = torch.tensor(groups)
    return (ids[:, None] == ids).fill_diagonal_(False)
