"""Learning rate schedule: linear warm-up, then cosine, constant, or constant with a cooldown."""

import math

from ..train_settings import ScheduleSettings


def learning_rate(step: int, num_steps: int, settings: ScheduleSettings) -> float:
    """Learning rate of a step, counted from 0; above 0 at the first step and at the last.

    `cosine` falls to zero over all steps after warm-up, `constant` stays, and `wsd` stays and then falls over the last
    `--cooldown` share of the steps as 1 - sqrt (Hägele et al. 2024, arXiv:2405.18392, section 3).

    >>> settings = ScheduleSettings(lr=1.0, warmup=0.5)
    >>> [round(learning_rate(step, 4, settings), 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup_steps = round(settings.warmup * num_steps)
    if step < warmup_steps:
        return settings.lr * (step + 1) / warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "wsd":
        cooldown_steps = min(round(settings.cooldown * num_steps), num_steps - warmup_steps)
        steps_in_cooldown = step - (num_steps - cooldown_steps)
        if steps_in_cooldown <= 0:
            return settings.lr
        return settings.lr * (1 - math.sqrt(steps_in_cooldown / cooldown_steps))
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * progress))
