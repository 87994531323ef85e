"""What a tower's activations lie in on the CPU: memory that the process keeps from one batch to the next."""

import ctypes

import torch

# Of glibc's <malloc.h>. Above the one size, memory comes from the system and returns to it; what is free at the heap's
# end returns above the other.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAPPED_BYTES, _TRIMMED_BYTES = 2**30, 2**31 - 1


def set_malloc_thresholds(device: torch.device) -> bool:
    """Have the C library keep what a batch frees for the next one; holds for the whole process.

    It would give pieces above 32 MB back to the system, which zeroes every page of them for the next batch: a fifth
    of DeiT-Tiny's time at 64 images (benchmarks/memory_cpu_2026-11.md).

    Args:
        device: that computes; torch keeps a GPU's memory by itself.

    Returns:
        Whether it does; another C library than glibc has no such choice.
    """
    if device.type != "cpu":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        [mallopt(_M_MMAP_THRESHOLD, _MMAPPED_BYTES), mallopt(_M_TRIM_THRESHOLD, _TRIMMED_BYTES)]
    )
