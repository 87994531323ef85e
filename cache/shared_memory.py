"""Memory that a process and its workers share, without a name that a killed job would leave behind."""

import mmap
import os
import tempfile
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SharedMemory:
    """Memory that parent and workers share: a file without a name, which lives as long as a process holds it.

    Named segments (`multiprocessing.shared_memory`) stay in /dev/shm when a whole job is killed, and fall under its
    limit, 64 MB in a container.
    """

    descriptor: int
    shape: tuple[int, ...]

    @classmethod
    def create(cls, shape: tuple[int, ...]) -> "SharedMemory":
        """Zeros of a shape."""
        descriptor = _open_nameless()
        os.ftruncate(descriptor, int(np.prod(shape)))
        return cls(descriptor, shape)

    def view(self) -> NDArray[np.uint8]:
        """All of it, as `[slots, views, rows, height, width, 3] uint8`."""
        return np.frombuffer(mmap.mmap(self.descriptor, 0), np.uint8).reshape(self.shape)

    def __reduce__(self) -> Any:
        """How a worker gets it while it starts: by its own copy of the descriptor."""
        return _inherit, (DupFd(self.descriptor), self.shape)


def _open_nameless() -> int:
    """A descriptor of a new file without a name: in memory on Linux, in the temporary folder elsewhere."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clipglot")
    with tempfile.TemporaryFile(prefix="clipglot") as file:
        return os.dup(file.fileno())


def _inherit(duplicate: Any, shape: tuple[int, ...]) -> SharedMemory:
    return SharedMemory(duplicate.detach(), shape)
