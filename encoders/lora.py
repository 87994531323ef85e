"""LoRA: low-rank updates of frozen matrices (Hu et al. 2021, arXiv:2106.09685), with the peft library."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .errors import EncoderError


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
