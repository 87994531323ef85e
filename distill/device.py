"""Where to compute, and in what precision."""

from typing import Literal

import torch

from .errors import DistillError


def resolve_device(device: str) -> torch.device:
    """`auto` is the first GPU, else the CPU.

    Raises:
        DistillError: no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise DistillError(f"--device {device}: not usable here ({str(error).splitlines()[0]})") from error
    return resolved


def resolve_precision(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 on a GPU and fp32 elsewhere."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision
