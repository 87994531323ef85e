"""AdamW with decay on matrices alone, and the learning rate's course."""

import math

import torch
from torch import nn

from ...encoders.text_lm import LMTower
from ..train_settings import TrainSettings


def make_optimizer(tower: nn.Module, loss: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over all that is trained; norms, biases and the temperature are not decayed.

    Each group has a `share` of the step's learning rate: 1, and for a language model's own parameters that of
    `--lm-lr`, less by `--layer-decay` for every layer between them and the head (Clark et al. 2020, arXiv:2003.10555,
    appendix A).
    """
    depths, top = tower.depths() if isinstance(tower, LMTower) else ({}, 0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for module in (tower, loss):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                share = 1.0
                if name in depths and "lora_" not in name:
                    share = settings.lm_lr / settings.lr * settings.layer_decay ** (top - depths[name])
                decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
                groups.setdefault((share, decay), []).append(parameter)
    described = [{"params": ps, "share": share, "weight_decay": decay} for (share, decay), ps in groups.items()]
    return torch.optim.AdamW(described, lr=settings.lr, betas=(0.9, settings.beta2), eps=1e-6, fused=True)


def learning_rate(step: int, num_steps: int, settings: TrainSettings) -> float:
    """The rate of a step: linear warm-up, then the schedule. The first step already learns, the last one still does.

    `cosine` falls to zero over all that is left, `constant` stays, and `wsd` stays and then falls over the last
    `--cooldown` share of the steps as 1 - sqrt (Hägele et al. 2024, arXiv:2405.18392, section 3).

    >>> s = TrainSettings(cache="c", output="o", lr=1.0, warmup=0.5)
    >>> [round(learning_rate(step, 4, s), 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup_steps = round(settings.warmup * num_steps)
    if step < warmup_steps:
        return settings.lr * (step + 1) / warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "wsd":
        cooldown_steps = min(round(settings.cooldown * num_steps), num_steps - warmup_steps)
        fallen = step - (num_steps - cooldown_steps)
        return settings.lr * (1 - math.sqrt(fallen / cooldown_steps)) if fallen > 0 else settings.lr
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
