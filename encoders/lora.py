"""LoRA: low-rank updates of frozen matrices (Hu et al. 2021, arXiv:2106.09685).

Language models get those of the peft library, the attention of open_clip our own. W width, T tokens.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .errors import EncoderError

ATTENTION_TARGETS = ("q", "k", "v", "out")
"""Matrices of an attention of open_clip: the projections to queries, keys and values, and that of the output."""


@dataclass(frozen=True, kw_only=True)
class LoRAOptions:
    """Settings of LoRA, of every text tower that has it.

    Attributes:
        lora_rank: of low-rank updates that are trained in place of the matrices; 0 trains the matrices.
        lora_alpha: scale of these updates times the rank; None is twice the rank.
        lora_targets: names of the linear layers that are updated; empty means all.
    """

    lora_rank: int = 0
    lora_alpha: float | None = None
    lora_targets: tuple[str, ...] = ()

    @property
    def resolved_alpha(self) -> float:
        """Scale of the updates times the rank."""
        return 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha


def add_lora(
    model: nn.Module, layers: nn.ModuleList, *, rank: int, alpha: float, targets: tuple[str, ...], dropout: float
) -> None:
    """Freeze a language model and add LoRA to the linear layers of its blocks; the initial update is zero.

    Args:
        model: transformers model; changed in place.
        layers: its blocks.
        rank: rank of the updates.
        alpha: the updates are scaled by alpha / rank.
        targets: last parts of the names of linear layers, e.g. query; empty means all.
        dropout: dropout probability of the input of the updates.

    Raises:
        EncoderError: peft is not installed, or no linear layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise EncoderError("--lora-rank needs peft: pip install peft") from error
    inside = {id(module) for module in layers.modules()}
    # Conv1D is the class of GPT-2's linear layers, whose matrices are transposed.
    linear = {n: m for n, m in model.named_modules() if id(m) in inside and isinstance(m, nn.Linear | Conv1D)}
    selected = [name for name in linear if not targets or name.split(".")[-1] in targets]
    missing = sorted(set(targets) - {name.split(".")[-1] for name in selected})
    if missing:
        names = ", ".join(sorted({name.split(".")[-1] for name in linear}))
        raise EncoderError(f"--lora-targets {missing[0]}: no linear layer has this name; there are {names}")
    scale: Any = alpha  # LoraConfig annotates an int, but any number works
    config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=selected, bias="none")
    config.fan_in_fan_out = any(isinstance(linear[name], Conv1D) for name in selected)
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)


def merge_lora(model: nn.Module) -> None:
    """Add the learned updates to the matrices and remove LoRA from the model, in place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            merged: Any = module
            merged.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, merged.get_base_layer())
    model.requires_grad_(True)


class LowRank(nn.Module):
    """Low-rank update of a matrix `[W, W]`, zero at first."""

    def __init__(self, width: int, *, rank: int, alpha: float) -> None:
        """Begin with no update.

        Args:
            width: W.
            rank: of the update.
            alpha: it is scaled by alpha / rank.
        """
        super().__init__()
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, width))
        self.lora_B = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as nn.Linear and peft begin

    def forward(self, x: Tensor) -> Tensor:
        """What the update adds to the output `[T, W]` of the matrix."""
        return F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale

    @property
    def matrix(self) -> Tensor:
        """The update itself, `[W, W]`."""
        return self.lora_B @ self.lora_A * self.scale


class AttentionLoRA(nn.Module):
    """Low-rank updates of an attention of open_clip, one for each of its matrices that is a target.

    Not peft's, which updates the fused `in_proj_weight` `[3 W, W]` as one matrix, and only in the forward of
    nn.MultiheadAttention, which a packed forward never calls.
    """

    def __init__(self, width: int, targets: tuple[str, ...], *, rank: int, alpha: float) -> None:
        """Begin with no update; arguments as of `LowRank` and `add_attention_lora`."""
        super().__init__()
        self.updates = nn.ModuleDict({name: LowRank(width, rank=rank, alpha=alpha) for name in targets})

    def qkv(self, x: Tensor) -> Tensor | float:
        """What the updates add to queries, keys and values, `[T, 3 W]`."""
        updated = {name: self.updates[name](x) for name in ("q", "k", "v") if name in self.updates}
        if not updated:
            return 0.0
        none = torch.zeros_like(next(iter(updated.values())))  # in the precision of autocast, as the others
        return torch.cat([updated.get(name, none) for name in ("q", "k", "v")], dim=-1)

    def out(self, x: Tensor) -> Tensor | float:
        """What the update adds to the output, `[T, W]`."""
        return self.updates["out"](x) if "out" in self.updates else 0.0

    @torch.no_grad()
    def add_to(self, attn: nn.MultiheadAttention) -> None:
        """Add the updates to the matrices."""
        width = attn.embed_dim
        for name, update in self.updates.items():
            assert isinstance(update, LowRank)
            if name == "out":
                attn.out_proj.weight += update.matrix
            else:
                start = ("q", "k", "v").index(name) * width
                attn.in_proj_weight[start : start + width] += update.matrix


def add_attention_lora(attentions: list[nn.MultiheadAttention], options: LoRAOptions) -> None:
    """Give attentions low-rank updates, each as its submodule `lora`.

    Args:
        attentions: of open_clip.
        options: with a rank; no targets stand for all of `ATTENTION_TARGETS`.

    Raises:
        EncoderError: there is no such target.
    """
    if unknown := [name for name in options.lora_targets if name not in ATTENTION_TARGETS]:
        names = ", ".join(ATTENTION_TARGETS)
        raise EncoderError(
            f"--lora-targets {unknown[0]}: no matrix of a CLIP's attention has this name; there are {names}"
        )
    targets = tuple(name for name in ATTENTION_TARGETS if name in (options.lora_targets or ATTENTION_TARGETS))
    for attn in attentions:
        attn.lora = AttentionLoRA(attn.embed_dim, targets, rank=options.lora_rank, alpha=options.resolved_alpha)


def merge_attention_lora(attentions: list[nn.MultiheadAttention]) -> None:
    """Add the learned updates to the matrices and remove them, in place."""
    for attn in attentions:
        lora: Any = attn.lora
        lora.add_to(attn)
        del attn.lora
