"""Where to compute, and in what precision."""

import os
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Literal

import torch

from . import distributed as parallel
from .errors import DistillError, LoneError

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """`auto` is this process's GPU (the first, if it is alone), else the CPU.

    Raises:
        DistillError: no such device.
    """
    if device == "auto":
        return torch.device("cuda", parallel.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
        if device == "cuda":
            resolved = torch.device("cuda", parallel.local_rank())
        elif resolved.type == "cuda" and parallel.num_local_processes() > 1:
            raise DistillError(f"--device {device}: every process takes a GPU of its own: pass cuda, or auto")
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        # Where there are GPUs, this may be the one process that they do not suffice for.
        kind = LoneError if torch.cuda.is_available() else DistillError
        raise kind(f"--device {device}: not usable here ({str(error).splitlines()[0]})") from error
    return resolved


def resolve_precision(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """`auto` is bf16 on a GPU and fp32 elsewhere."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """What a tower computes in; may be entered again and again."""
    return torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()


def set_matmul_precision(device: torch.device, *, tf32: bool) -> None:
    """Multiply float32 matrices as TF32 on a GPU, or exactly; holds for the whole process."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


def resolve_compile(compile_: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """`auto` compiles on a GPU.

    Raises:
        DistillError: asked for elsewhere; captions by length come in too many shapes, and there is nothing to gain.
    """
    if compile_ == "on" and device.type != "cuda":
        raise DistillError(f"--compile on: only a GPU gains from it, this is {device.type}: leave it out")
    return compile_ != "off" and device.type == "cuda"


def free_bytes(device: torch.device) -> int:
    """Memory that the device has left for this process: on the CPU what could be freed, shared with the others here."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration):
        meminfo = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in meminfo if line.startswith("MemAvailable:")).split()[1])
    with suppress(OSError, ValueError):  # "max" is no number: there is no limit
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free // parallel.num_local_processes()
