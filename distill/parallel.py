"""Several processes of one run, as `torchrun` starts them: who we are, and what is summed over all.

Alone, everything here is a no-op, so that callers need not know.
"""

import torch.distributed as dist
from torch import Tensor


def num_processes() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def reduce_sum_(tensor: Tensor) -> Tensor:
    """Replace a tensor by its sum over all processes."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.SUM)
    return tensor


def reduce_max_(tensor: Tensor) -> Tensor:
    """Replace a tensor by its largest values over all processes."""
    if dist.is_initialized():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor
