"""How fast a run goes, from one line of metrics to the next."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from .. import distributed as parallel

T = TypeVar("T")


class Throughput:
    """Mean times of steps, and of what they waited for.

    A GPU runs behind the host, so a step that waits for it pays for those before: only all of them together are true.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._begin()

    def _begin(self) -> None:
        self._steps, self._waited_s, self._other_s = 0, 0.0, 0.0
        self._since = time.perf_counter()

    def steps(self, inputs: Iterable[T]) -> Iterator[T]:
        """The inputs of steps, as they come."""
        started = time.perf_counter()
        for given in inputs:
            self._waited_s += time.perf_counter() - started
            self._steps += 1
            yield given
            started = time.perf_counter()

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Validation or a checkpoint, begun when the device had nothing left to do."""
        started = time.perf_counter()
        yield
        self._other_s += time.perf_counter() - started

    def mark(self) -> dict[str, float]:
        """Means since the last mark, once the device has nothing left to do."""
        step_s = (time.perf_counter() - self._since - self._other_s) / self._steps
        measured = {"pairs_per_s": self._batch_size / step_s, "data_s": self._waited_s / self._steps, "step_s": step_s}
        self._begin()
        return measured


WARM_UP = 10  # steps before the first that is recorded: they allocate and compile


def trace_file(run: Path) -> Path:
    """Where the trace of a run goes."""
    return run / "profile" / "trace.json"


@contextmanager
def profiled(run: Path, steps: int) -> Iterator[Callable[[], None]]:
    """Record `steps` steps of the block, 0 for none, to `profile/trace.json`, which chrome://tracing and Perfetto show.

    Yields:
        To be called after each step.
    """
    if not steps or not parallel.is_first():
        yield lambda: None
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]

    def write(recorded: profile) -> None:
        trace_file(run).parent.mkdir(exist_ok=True)
        recorded.export_chrome_trace(str(trace_file(run)))

    waiting = schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1)
    with profile(activities=activities, schedule=waiting, on_trace_ready=write) as recording:
        yield recording.step
