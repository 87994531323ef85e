"""Progress bars of Python calls: in a terminal or a notebook, and only of work that takes longer than a moment."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOWN_AFTER_S = 1.0
_COLUMNS = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def is_watched() -> bool:
    """Whether somebody sees a bar: standard error is a terminal, or this is a notebook."""
    return Console(stderr=True).is_jupyter or sys.stderr.isatty()


@contextmanager
def steps(name: str, total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Yield a callback that takes the number of steps done.

    Args:
        name: of the work.
        total: steps.
        show: at once, or never; None shows a bar where it is watched and takes longer than `SHOWN_AFTER_S`.
    """
    started, bar, task = time.monotonic(), None, None
    watched = is_watched() if show is None else show

    def advance(done: int) -> None:
        nonlocal bar, task
        if bar is None and watched and (show or (done < total and time.monotonic() - started > SHOWN_AFTER_S)):
            bar = Progress(*_COLUMNS, console=Console(stderr=True))
            bar.start()
            task = bar.add_task(name, total=total)
        if bar is not None and task is not None:
            bar.update(task, completed=done)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


@contextmanager
def stages(show: bool | None) -> Iterator[Callable[[Any], None] | None]:
    """Yield a callback for `clipglot.cache.progress.Progress`, with a bar for each stage; None where none is shown."""
    if not (is_watched() if show is None else show):
        yield None
        return
    with Progress(*_COLUMNS, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def on_progress(progress: Any) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bar.add_task(progress.stage, total=progress.total)
            bar.update(tasks[progress.stage], completed=progress.done, total=progress.total)

        yield on_progress
