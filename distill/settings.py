"""Common parts of settings dataclasses: the device field, and checks whose errors name the flag."""

from typing import Annotated

from .errors import DistillError

Device = Annotated[str, "cpu, cuda, cuda:1, …; auto uses a GPU if there is one"]


def require(condition: bool, message: str) -> None:
    """Raise a DistillError with the message unless the condition holds."""
    if not condition:
        raise DistillError(message)


def require_at_least_one(settings: object, *names: str) -> None:
    """Raise a DistillError that names the flag of the first field below 1; None is allowed."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: must be at least 1")
