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


class _Window:
    """Steps and seconds since the last measurement."""

    def __init__(self) -> None:
        self.num_steps, self.wait_s, self.paused_s = 0, 0.0, 0.0
        self.started = time.perf_counter()

    @property
    def step_s(self) -> float:
        """Mean duration of a step."""
        return (time.perf_counter() - self.started - self.paused_s) / self.num_steps


class Throughput:
    """Mean duration of a step, and of its wait for input: since the last line of metrics, and in this epoch.

    A GPU runs behind the host, so a step that waits for it pays for the steps before: only the mean over many is true.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._line, self._epoch = _Window(), _Window()

    def count(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches of steps, and count each one and the wait for it."""
        started = time.perf_counter()
        for batch in batches:
            waited_s = time.perf_counter() - started
            for window in (self._line, self._epoch):
                window.wait_s += waited_s
                window.num_steps += 1
            yield batch
            started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the block, e.g. a validation; begun when the device has no work left."""
        started = time.perf_counter()
        yield
        paused_s = time.perf_counter() - started
        for window in (self._line, self._epoch):
            window.paused_s += paused_s

    def measure(self) -> dict[str, float]:
        """Means since the last measurement; called when the device has no work left."""
        line, self._line = self._line, _Window()
        step_s = line.step_s
        return {"pairs_per_s": self._batch_size / step_s, "data_s": line.wait_s / line.num_steps, "step_s": step_s}

    def measure_epoch(self) -> float:
        """Images a second since the epoch began; called when the device has no work left."""
        epoch, self._epoch = self._epoch, _Window()
        return self._batch_size / epoch.step_s


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
