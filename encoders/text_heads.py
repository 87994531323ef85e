"""Heads of language models: from the pooled features of a caption to the features of images.

W features of a caption, D of an image, H hidden ones.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Head = Literal["linear", "mlp", "glu", "deep"]
OPEN_CLIP_HEADS = ("linear", "mlp")  # of open_clip's HFTextEncoder (open_clip 3.3.0, hf_model.py)
GATED_WIDTH = 4  # H of a gated MLP, in W
DEEP_DROPOUT = 0.2
NUM_DEEP = 3  # hidden layers of the deep MLP


class GatedMLP(nn.Module):
    """Gated MLP: one projection gates another.

    The alignment layer of SAIL (Zhang et al. 2025, arXiv:2412.04616, section 3.2), with a LayerNorm ahead.
    """

    def __init__(self, width: int, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = GATED_WIDTH * width
        self.norm = nn.LayerNorm(width)
        self.gate, self.value = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.act, self.dropout = nn.ReLU6(), nn.Dropout(dropout)
        self.last = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, D]` of `[B, W]`."""
        x = self.norm(x)
        features: Tensor = self.last(self.dropout(self.act(self.gate(x)) * self.value(x)))
        return features


class DeepMLP(nn.Module):
    """MLP of three hidden layers with dropout.

    The projection of ShareLock (Ruthardt et al. 2024, arXiv:2410.07173, section 3), with LayerNorm in place of
    BatchNorm, which would depend on the micro-batch and on the number of processes.
    """

    def __init__(self, width: int, dim: int, dropout: float = DEEP_DROPOUT) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        layers: list[nn.Module] = []
        for _ in range(NUM_DEEP):
            layers += [nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*layers)
        self.last = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, D]` of `[B, W]`."""
        features: Tensor = self.last(self.hidden(self.norm(x)))
        return features


class ResidualHead(nn.Module):
    """A linear head and a correction of it, which is zero at first."""

    def __init__(self, linear: nn.Linear, correction: nn.Module) -> None:
        super().__init__()
        self.linear, self.correction = linear, correction
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Make the correction zero."""
        last = [module for module in self.correction.modules() if isinstance(module, nn.Linear)][-1]
        last.weight.zero_()
        if last.bias is not None:
            last.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Features `[B, D]` of `[B, W]`."""
        features: Tensor = self.linear(x) + self.correction(x)
        return features


def make_head(head: Head, width: int, dim: int, *, dropout: float = 0.0, residual: bool = False) -> nn.Module:
    """A head with random weights.

    Args:
        head: its form.
        width: W.
        dim: D.
        dropout: of the hidden features of forms other than open_clip's.
        residual: whether it corrects a linear head, which is then part of it.
    """
    made: nn.Module
    if head == "linear":
        made = nn.Linear(width, dim, bias=False)
    elif head == "mlp":
        hidden = (width + dim) // 2
        made = nn.Sequential(nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, dim, bias=False))
    else:
        made = (GatedMLP if head == "glu" else DeepMLP)(width, dim, dropout)
    return ResidualHead(nn.Linear(width, dim, bias=False), made) if residual else made
