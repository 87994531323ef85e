"""LoRA: low-rank changes of frozen matrices (Hu et al. 2021, arXiv:2106.09685), by the peft library."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from .errors import EncoderError


def add_lora(
    model: nn.Module, layers: nn.ModuleList, *, rank: int, alpha: float, targets: tuple[str, ...], dropout: float
) -> None:
    """Freeze a model and put trainable pairs of thin matrices beside those of its blocks; at first they change nothing.

    Args:
        model: of transformers; changed in place.
        layers: its blocks.
        rank: columns of the thin matrices.
        alpha: their product is scaled by alpha / rank.
        targets: last parts of the names of the linear layers meant, e.g. query; empty means all.
        dropout: of what the thin matrices are given.

    Raises:
        EncoderError: peft is not installed, or no linear layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise EncoderError("--lora-rank needs peft: pip install 'clipglot[lora]'") from error
    inside = {id(module) for module in layers.modules()}
    # GPT-2's linear layers have a class of their own, and their matrices lie the other way round.
    found = {n: m for n, m in model.named_modules() if id(m) in inside and isinstance(m, nn.Linear | Conv1D)}
    linear = list(found)
    wanted = [name for name in linear if not targets or name.split(".")[-1] in targets]
    missing = sorted(set(targets) - {name.split(".")[-1] for name in wanted})
    if missing:
        known = ", ".join(sorted({name.split(".")[-1] for name in linear}))
        raise EncoderError(f"--lora-targets {missing[0]}: no linear layer is called so; there are {known}")
    scale: Any = alpha  # annotated as int, used as a number
    config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=wanted, bias="none")
    config.fan_in_fan_out = any(isinstance(found[name], Conv1D) for name in wanted)
    model.requires_grad_(False)
    inject_adapter_in_model(config, model)


def merge_lora(model: nn.Module) -> None:
    """Add what was learned to the matrices, and leave the model as it was before `add_lora`, in place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            merged: Any = module
            merged.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, merged.get_base_layer())
    model.requires_grad_(True)
