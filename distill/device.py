"""Device and precision of training, and the device's free memory."""

import os
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Literal

import torch

from . import distributed
from .errors import DistillError, LoneError

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str) -> torch.device:
    """Device that `--device` names; `auto` is this process's GPU (the first, if it is alone), else the CPU.

    Raises:
        DistillError: there is no such device.
    """
    if device == "auto":
        return torch.device("cuda", distributed.local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
        if device == "cuda":
            resolved = torch.device("cuda", distributed.local_rank())
        elif resolved.type == "cuda" and distributed.num_local_processes() > 1:
            raise DistillError(f"--device {device}: each process needs a GPU of its own: pass cuda, or auto")
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        # On a machine with GPUs, this may be the one process that finds none free.
        kind = LoneError if torch.cuda.is_available() else DistillError
        raise kind(f"--device {device}: not usable here ({str(error).splitlines()[0]})") from error
    return resolved


def uses_gpu(device: str) -> bool:
    """Whether a run on the device that `--device` names, which need not exist, trains on a GPU."""
    return torch.cuda.is_available() if device == "auto" else device != "cpu"


def resolve_precision(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> Precision:
    """Precision that `--precision` names; `auto` is bf16 on a GPU and fp32 elsewhere."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Context in which a tower computes; may be entered again and again."""
    return torch.autocast(device.type, AUTOCAST[precision]) if precision in AUTOCAST else nullcontext()


def set_matmul_precision(device: torch.device, *, tf32: bool) -> None:
    """Multiply float32 matrices as TF32 on a GPU, or exactly; set for the whole process."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


def resolve_compile(compile_: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Whether `--compile` compiles; `auto` does so on a GPU.

    Raises:
        DistillError: asked for on another device: captions by length come in too many shapes, and nothing is gained.
    """
    if compile_ == "on" and device.type != "cuda":
        raise DistillError(f"--compile on: only a GPU gains from it, this is {device.type}: leave it out")
    return compile_ != "off" and device.type == "cuda"


def free_bytes(device: torch.device) -> int:
    """Free memory of the device for this process; on the CPU a share of what is available on the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration):
        meminfo = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in meminfo if line.startswith("MemAvailable:")).split()[1])
    with suppress(OSError, ValueError):  # "max", which is not a number, stands for no limit
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free // distributed.num_local_processes()
