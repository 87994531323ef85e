"""Checks of settings, shared by all settings dataclasses."""

import os
from typing import Annotated

from .errors import DistillError

Device = Annotated[str, "cpu, cuda, cuda:1, …; auto takes a GPU where there is one"]


def num_usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require(condition: bool, message: str) -> None:
    """Raise a DistillError with the message unless the condition holds."""
    if not condition:
        raise DistillError(message)


def require_at_least_one(settings: object, *names: str) -> None:
    """Raise a DistillError that names the flag of a field below 1; None is allowed."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: must be at least 1")
