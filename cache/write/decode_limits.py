"""Limits of decoding: processor time of one image, and memory of all images that are decoded at the same time."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..format import MAX_DECODE_S, MAX_PIXELS

FREE_PIXELS = 2**23  # of an image that needs no claim: most photographs
PIXEL_BYTES = 8  # while an image is decoded: 4 in its own mode, and 4 as RGB
UNIT_BYTES = 2**26  # memory is claimed in units of this size
MEMORY_SHARE = 0.5  # of what is available when a pass begins

Claim = Callable[[int], AbstractContextManager[None]]
"""Waits for the memory of an image of this many pixels, and keeps it until the end of the block."""


def claim_nothing(num_pixels: int) -> AbstractContextManager[None]:
    """The `Claim` of a process that decodes one image at a time."""
    return nullcontext()


def max_decode_s(max_pixels: int) -> float:
    """Processor time that an image may take: `MAX_DECODE_S`, and more where larger images are allowed."""
    return MAX_DECODE_S * max(1.0, max_pixels / MAX_PIXELS)


class DecodeMemory:
    """Bounds the memory of large images that worker processes decode at the same time.

    A worker waits before it decodes an image for which no memory is left. An image larger than the budget is decoded
    while no other large one is. It can be pickled only to workers that are starting.
    """

    def __init__(self, context: BaseContext, budget_bytes: int) -> None:
        self._num_units = max(1, budget_bytes // UNIT_BYTES)
        self._units, self._lock = context.Semaphore(self._num_units), context.Lock()

    @contextmanager
    def claim(self, num_pixels: int) -> Iterator[None]:
        """Wait for the memory of an image of this many pixels, and give it back at the end of the block."""
        num_units = 0 if num_pixels <= FREE_PIXELS else -(-num_pixels * PIXEL_BYTES // UNIT_BYTES)
        num_units = min(num_units, self._num_units)
        if num_units:
            with self._lock:  # one worker at a time: two could each get a part and wait for the rest
                for _ in range(num_units):
                    self._units.acquire()
        try:
            yield
        finally:
            for _ in range(num_units):
                self._units.release()


def decode_memory_bytes() -> int:
    """Budget of memory for all images that are decoded at the same time."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with suppress(OSError, ValueError):  # "max" is not a number: there is no limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        available = min(available, limit - used)
    return int(available * MEMORY_SHARE)


class OverdueImage(NamedTuple):
    """An image that takes too long: its row, and the worker that decodes it."""

    row: int
    pid: int


class DecodeTimers:
    """Timers of the images that workers are decoding, in shared memory, one a slot.

    They count processor time, so that an image does not fail because the machine is busy or was asleep. Without /proc
    no image is overdue.
    """

    def __init__(self, context: Any, num_slots: int) -> None:
        self._memory = context.RawArray("d", 3 * num_slots)

    def _view(self) -> NDArray[np.float64]:
        """`[slots, 3]`: 1 + row, or 0 while none is decoded; worker; seconds of the worker at the start."""
        return np.frombuffer(self._memory, np.float64).reshape(-1, 3)

    @contextmanager
    def running(self, slot: int, row: int) -> Iterator[None]:
        """Time one image, in a worker."""
        timer = self._view()[slot]
        timer[1:] = os.getpid(), time.process_time()
        timer[0] = 1 + row
        try:
            yield
        finally:
            timer[0] = 0

    def overdue(self, limit_s: float) -> list[OverdueImage]:
        """The images that have taken longer than the limit."""
        overdue = []
        for row, pid, started_s in self._view().tolist():
            now_s = _process_s(int(pid)) if row else None
            if now_s is not None and now_s - started_s > limit_s:
                overdue.append(OverdueImage(int(row) - 1, int(pid)))
        return overdue

    def reset(self) -> None:
        """Clear the timers of workers that have ended."""
        self._view()[:] = 0


def _process_s(pid: int) -> float | None:
    """Processor time of a process and its threads; None if it is unknown."""
    try:
        # The name of the program, in parentheses, can contain spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
