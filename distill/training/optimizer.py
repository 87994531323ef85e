"""AdamW with weight decay on matrices alone."""

import torch
from torch import nn

from ...encoders.text_tower import TextTower


def make_optimizer(
    tower: TextTower,
    loss: nn.Module,
    *,
    lr: float,
    lm_lr: float,
    layer_decay: float,
    weight_decay: float,
    beta2: float,
) -> torch.optim.AdamW:
    """AdamW over all trained parameters; norms, biases and the temperature are not decayed.

    Each group has a `share`: its factor on the learning rate of a step (`TextTower.learning_rate_factors`).

    Args:
        tower: to train.
        loss: with its own parameters, e.g. a temperature.
        lr: peak learning rate.
        lm_lr: peak learning rate of a language model's own parameters.
        layer_decay: factor on that rate for every layer further from the head.
        weight_decay: AdamW's.
        beta2: decay of AdamW's second moment.
    """
    factors = tower.learning_rate_factors(pretrained=lm_lr / lr, layer_decay=layer_decay)
    trained = [(factors[name], p) for name, p in tower.named_parameters() if p.requires_grad]
    trained += [(1.0, p) for p in loss.parameters() if p.requires_grad]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for factor, parameter in trained:
        decay = weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    described = [{"params": ps, "share": share, "weight_decay": decay} for (share, decay), ps in groups.items()]
    return torch.optim.AdamW(described, lr=lr, betas=(0.9, beta2), eps=1e-6, fused=True)
