"""A look into some steps with torch's profiler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from . import parallel

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
