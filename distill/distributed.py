"""Processes of one run, as `torchrun` starts them: ranks, shares of the batch, sums over all processes.

In a single process everything here is a no-op, so that callers need not know. A batch is cut into equal shares, one a
process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..cache.errors import CacheError
from ..encoders.errors import EncoderError
from .errors import DistillError

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # others wait while the first process tokenizes millions of captions


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` started, for the duration of the block.

    On GPUs, tensors travel by NCCL; tensors on the host travel by gloo, everywhere.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    yield
    dist.destroy_process_group()  # not after an error: others may wait in a collective, and the launcher ends them


def local_rank() -> int:
    """Number of this process on its machine, and so of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def num_local_processes() -> int:
    """Number of processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def num_processes() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_process() -> bool:
    """Whether this process writes the run and its messages: the one of rank 0."""
    return rank() == 0


def all_or_none(act: Callable[[], T]) -> T:
    """Call `act` in every process; if it is refused in one process, raise in all, in the main one with the message.

    Every process must call this at the same point, each with its own part of the work.

    Raises:
        CacheError, EncoderError, DistillError, OSError: of this process, or in the main process of another one.
    """
    result, refused = None, None
    try:
        result = act()
    except (CacheError, EncoderError, DistillError, OSError) as error:
        refused = error
    messages = gather_objects(str(refused) if refused else None)
    if refused:
        raise refused
    for number, message in enumerate(messages):
        if message:
            raise DistillError(f"process {number}: {message}")
    return cast(T, result)


def own_slice(batch_size: int) -> slice:
    """Share of a batch that this process has.

    Raises:
        DistillError: the batch cannot be cut into equal shares.
    """
    if not dist.is_initialized():
        return slice(0, batch_size)
    size, rest = divmod(batch_size, num_processes())
    if rest:
        raise DistillError(
            f"--batch-size {batch_size} cannot be shared by {num_processes()} processes: make it a multiple of them"
        )
    return slice(rank() * size, (rank() + 1) * size)


def gather(share: Tensor) -> Tensor:
    """Equal shares `[b, …]` of all processes, in order: `[B, …]`. No gradient flows."""
    if not dist.is_initialized():
        return share
    shares = [torch.empty_like(share) for _ in range(num_processes())]
    dist.all_gather(shares, share.contiguous())
    return torch.cat(shares)


def gather_objects(value: Any) -> list[Any]:
    """A picklable value of every process, in order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    return bool(reduce_max_(torch.tensor(int(flag))).item())


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


# torch checks the annotation of `bucket`, and its stubs lack the class.
def summed(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    """Sum of gradients over all processes, as a hook of DistributedDataParallel, whose own rule is the mean.

    For the mean, each process would have to multiply its gradient by their number first, and float16 would overflow.
    """
    work = dist.all_reduce(bucket.buffer(), dist.ReduceOp.SUM, async_op=True)
    assert work is not None
    return work.get_future().then(lambda reduced: cast(Tensor, reduced.value()[0]))


def sum_of_shares(share: Tensor) -> Tensor:
    """Sum over all processes, with the gradient of this process's share alone."""
    total = reduce_sum_(share.detach().clone())
    return share + (total - share.detach()) if dist.is_initialized() else share
