"""Throughput of a run from one line of metrics to the next, and traces of its steps by torch's profiler."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from .. import distributed

T = TypeVar("T")
WARM_UP = 10  # steps before the first that is profiled: they allocate and compile


class Throughput:
    """Mean duration of a step, and of its wait for input.

    A GPU runs behind the host, so a step that waits for it pays for the steps before: only the mean over many is true.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._begin()

    def _begin(self) -> None:
        self._num_steps, self._wait_s, self._paused_s = 0, 0.0, 0.0
        self._started = time.perf_counter()

    def count(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches of steps, and count each one and the wait for it."""
        started = time.perf_counter()
        for batch in batches:
            self._wait_s += time.perf_counter() - started
            self._num_steps += 1
            yield batch
            started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the block, e.g. a validation; begun when the device has no work left."""
        started = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - started

    def measure(self) -> dict[str, float]:
        """Means since the last measurement; called when the device has no work left."""
        step_s = (time.perf_counter() - self._started - self._paused_s) / self._num_steps
        means = {"pairs_per_s": self._batch_size / step_s, "data_s": self._wait_s / self._num_steps, "step_s": step_s}
        self._begin()
        return means


def trace_file(run: Path) -> Path:
    """File of a run's trace."""
    return run / "profile" / "trace.json"


@contextmanager
def profiled(run: Path, steps: int) -> Iterator[Callable[[], None]]:
    """Profile `steps` steps of the block, 0 for none, into `profile/trace.json` for chrome://tracing and Perfetto.

    Yields:
        A function to be called after each step.
    """
    if not steps or not distributed.is_main_process():
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]

    def write(trace: profile) -> None:
        trace_file(run).parent.mkdir(exist_ok=True)
        trace.export_chrome_trace(str(trace_file(run)))

    phases = schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=phases, on_trace_ready=write) as profiler:
        yield profiler.step
