"""Progress bars of Python calls: in a terminal or a notebook, and only of work that takes longer than a moment."""

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SHOWN_AFTER_S = 1.0
REDRAWN_AFTER_S = 0.25  # in a notebook, where each drawing is a message to the browser
MAX_LINES = 500  # below a notebook's cell; the first are left out
_COLUMNS = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


class Shown(Protocol):
    """Progress that somebody sees: a bar a stage, and lines."""

    def show(self, stage: str, done: int, total: int | None) -> None:
        """Move the bar of a stage."""

    def print(self, line: str) -> None:
        """Add a line of text."""

    def stop(self) -> None:
        """Leave the last state where it is."""


class TerminalProgress:
    """Bars on standard error, by rich, with lines above them."""

    def __init__(self) -> None:
        self._bars = Progress(*_COLUMNS, console=Console(stderr=True, markup=False, emoji=False, highlight=False))
        self._tasks: dict[str, Any] = {}
        self._bars.start()

    def show(self, stage: str, done: int, total: int | None) -> None:
        """Move the bar of a stage; it begins where the work goes on."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, completed=done)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def print(self, line: str) -> None:
        """Add a line above the bars."""
        self._bars.console.print(line)

    def stop(self) -> None:
        """Leave the last state where it is."""
        self._bars.stop()


class NotebookProgress:
    """Bars below the cell of a notebook, in plain HTML: rich's own need ipywidgets, which many kernels lack."""

    def __init__(self) -> None:
        from IPython.display import display

        self._stages: dict[str, tuple[int, int | None]] = {}
        self._lines: list[str] = []
        self._drawn_at = time.monotonic()
        self._handle: Any = display(self, display_id=True)  # type: ignore[no-untyped-call]

    def show(self, stage: str, done: int, total: int | None) -> None:
        """Move the bar of a stage."""
        self._stages[stage] = (done, total)
        self._draw()

    def print(self, line: str) -> None:
        """Add a line below the bars."""
        self._lines = [*self._lines, line][-MAX_LINES:]
        self._draw()

    def stop(self) -> None:
        """Draw the last state."""
        self._draw(at_once=True)

    def _draw(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._drawn_at > REDRAWN_AFTER_S:
            self._drawn_at = time.monotonic()
            self._handle.update(self)

    def _repr_html_(self) -> str:
        bars = "".join(
            f"<tr><td style='text-align:right'>{html.escape(stage)}</td><td><progress max='{total or 1}' "
            f"value='{done if total else 0}'></progress></td><td>{_count(done, total)}</td></tr>"
            for stage, (done, total) in self._stages.items()
        )
        lines = html.escape("\n".join(self._lines))
        return f"<table>{bars}</table><pre>{lines}</pre>" if lines else f"<table>{bars}</table>"

    def __repr__(self) -> str:
        """Text, for programs that show no HTML."""
        bars = [f"{stage} {_count(done, total)}".rstrip() for stage, (done, total) in self._stages.items()]
        return "\n".join([*bars, *self._lines])


def _count(done: int, total: int | None) -> str:
    return f"{done:,}/{total:,}" if total else f"{done:,}" if done else ""


def is_watched() -> bool:
    """Whether somebody sees a bar: standard error is a terminal, or this is a notebook."""
    return Console(stderr=True).is_jupyter or sys.stderr.isatty()


def begin_progress() -> Shown:
    """Progress where this process is watched: in its terminal, or below the cell of its notebook."""
    return NotebookProgress() if Console(stderr=True).is_jupyter else TerminalProgress()


@contextmanager
def steps(name: str, total: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Yield a callback that takes the number of steps done.

    Args:
        name: of the work.
        total: steps.
        show: at once, or never; None shows a bar where it is watched and takes longer than `SHOWN_AFTER_S`.
    """
    started = time.monotonic()
    shown: Shown | None = None
    watched = is_watched() if show is None else show

    def advance(done: int) -> None:
        nonlocal shown
        if shown is None and watched and (show or (done < total and time.monotonic() - started > SHOWN_AFTER_S)):
            shown = begin_progress()
        if shown is not None:
            shown.show(name, done, total)

    try:
        yield advance
    finally:
        if shown is not None:
            shown.stop()


@contextmanager
def stages(show: bool | None) -> Iterator[Shown | None]:
    """Yield progress with a bar for each stage of the work; None where none is shown."""
    if not (is_watched() if show is None else show):
        yield None
        return
    shown = begin_progress()
    try:
        yield shown
    finally:
        shown.stop()
