"""AdamW with weight decay on matrices alone, and the learning rate schedule."""

import math

import torch
from torch import nn

from ...encoders.text_tower import TextTower
from ..train_settings import TrainSettings


def make_optimizer(tower: TextTower, loss: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW over all trained parameters; norms, biases and the temperature are not decayed.

    Each group has a `share`: its factor on the learning rate of a step (`TextTower.learning_rate_factors`).
    """
    factors = tower.learning_rate_factors(pretrained=settings.lm_lr / settings.lr, layer_decay=settings.layer_decay)
    trained = [(factors[name], p) for name, p in tower.named_parameters() if p.requires_grad]
    trained += [(1.0, p) for p in loss.parameters() if p.requires_grad]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for factor, parameter in trained:
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    described = [{"params": ps, "share": share, "weight_decay": decay} for (share, decay), ps in groups.items()]
    return torch.optim.AdamW(described, lr=settings.lr, betas=(0.9, settings.beta2), eps=1e-6, fused=True)


def learning_rate(step: int, num_steps: int, settings: TrainSettings) -> float:
    """Learning rate of a step: linear warm-up, then the schedule. It is above zero in the first step and in the last.

    `cosine` falls to zero over the remaining steps, `constant` stays, and `wsd` stays and then falls over the last
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
