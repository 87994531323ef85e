"""What every command shares on the screen: errors, progress, tables, JSON."""

import errno
import json
import math
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from ..cache.errors import CacheError
from ..cache.progress import OnProgress
from ..cache.progress import Progress as StageProgress
from ..distill.errors import DistillError, LoneError
from ..encoders.errors import EncoderError
from ..evals.errors import EvalError
from ..exports.errors import ExportError
from ..inference.errors import InputError
from ..search.errors import SearchError
from .main import is_first_process
from .terminal import json_safe, visible, visible_line


class SafeConsole(Console):
    """A console that draws and colours, and in whose texts controls are visible."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As `Console.render`, which all that is drawn goes through; what draws is marked as control by rich."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    @property
    def file(self) -> IO[str]:
        """The stream behind all that stand before it: while a bar runs, rich's own stands before a `SafeStream`."""
        file = super().file
        while hasattr(file, "rich_proxied_file"):
            file = file.rich_proxied_file
        return file

    @file.setter
    def file(self, file: IO[str]) -> None:
        """As `Console.file`."""
        self._file = file


class Table(RichTable):
    """A table whose texts are made visible before their widths are measured; each is one line."""

    def add_row(self, *cells: Any, **how: Any) -> None:
        """As `Table.add_row`."""
        super().add_row(*(visible_line(cell) if isinstance(cell, str) else cell for cell in cells), **how)


class _Output(SafeConsole):
    """Standard output; where that is no terminal, lines end where their text does."""

    def print(self, *objects: Any, **how: Any) -> None:
        """As `Console.print`, which fills the last column of a table with spaces."""
        if self.is_terminal:
            super().print(*objects, **how)
            return
        with self.capture() as captured:
            super().print(*objects, **how)
        click.echo("\n".join(line.rstrip() for line in captured.get().split("\n")), nl=False)


# Names of files and texts of users are printed as they are: "[a].png" is no markup, ":cat:" no emoji.
output = _Output(markup=False, emoji=False, highlight=False)
if not output.is_terminal:
    output.width = 10_000  # a file has no edge to wrap at
status = SafeConsole(stderr=True, markup=False, emoji=False)
# What the machine refuses, whatever the program does: the message names the path.
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO}
_REFUSALS |= {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}  # what stands at the path
_NO_PART_OF_A_LINE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
_FLAG = r"(?<![\w-])--?[a-z][a-z0-9-]*"
_BARS = "▁▂▃▄▅▆▇█"
json_option = click.option("--json", "as_json", is_flag=True, help="print one JSON document instead")


@contextmanager
def friendly_errors() -> Iterator[None]:
    """The user's mistakes and what the disk refuses become one message and exit code 1; bugs keep their traceback."""
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        raise click.ClickException(visible_line(str(error))) from error
    except LoneError as error:
        click.echo(visible_line(f"Error: {error}"), err=True)  # beside the first process's, if that has one
        raise SystemExit(1) from error
    except (CacheError, EncoderError, DistillError, EvalError, ExportError, InputError, SearchError) as error:
        raise click.ClickException(visible_line(str(error))) from error


def say(line: str, *, wrap: bool = True) -> None:
    """Plain text on standard output: one line, which a terminal wraps between words; code is not wrapped."""
    if output.is_terminal:
        output.print(Text(visible_line(line)), soft_wrap=not wrap)
    else:
        click.echo(visible_line(line))


def warn(line: str) -> None:
    """One line on standard error, above a bar that may be running there; a terminal wraps it between words."""
    status.print(Text(visible_line(line), style="yellow"), soft_wrap=not status.is_terminal)


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """One JSON document on standard output, nothing else there; without indent it takes one line."""
    click.echo(json_safe(json.dumps(value, ensure_ascii=False, indent=indent)))


class Bars(Progress):
    """Bars of the stages of a command, and a line below them.

    Attributes:
        footer: that line, if there is one.
    """

    footer: Text | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """As of `Progress`, then the footer."""
        yield from super().get_renderables()
        if self.footer is not None:
            yield self.footer


class _Count(ProgressColumn):
    """Done and total; nothing for a stage that counts nothing."""

    def render(self, task: Task) -> Text:
        if not (task.total or task.completed):
            return Text()
        total = "?" if task.total is None else f"{int(task.total):,}"
        return Text(f"{int(task.completed):,}/{total}".rjust(2 * len(total) + 1), style="progress.download")


class _TimeRemaining(TimeRemainingColumn):
    """Time that remains; nothing where it cannot be estimated."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.time_remaining is not None or task.finished else Text()


@contextmanager
def progress_bar() -> Iterator[Bars]:
    """Bars on standard error, of the first process; silent where that is not a terminal."""
    columns = (
        TextColumn("{task.description:>8}", markup=False),
        BarColumn(),
        _Count(),
        TaskProgressColumn(show_speed=True),
        _TimeRemaining(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Bars(*columns, console=status, disable=not (status.is_terminal and is_first_process())) as progress:
        yield progress


@contextmanager
def stage_bars(first: str) -> Iterator[OnProgress]:
    """Yield a callback that shows a bar for each stage of a command, of which `first` is shown at once."""
    with progress_bar() as bars:
        stage, task, done = first, bars.add_task(first, total=None, note=""), 0

        def show(progress: StageProgress) -> None:
            nonlocal stage, task, done
            if progress.stage != stage:
                bars.update(task, total=done, visible=done > 0)  # over, whatever its total was
                stage, task = progress.stage, bars.add_task(progress.stage, total=progress.total, note="")
            done = progress.done
            bars.update(task, completed=done, total=progress.total)

        yield show
        bars.update(task, total=done, visible=done > 0)


def flags_in_colour(text: str) -> Text:
    """A text whose flags stand out."""
    shown = Text(visible_line(text))
    shown.highlight_regex(_FLAG, "bold cyan")
    return shown


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve above zero in one line of text; empty where the terminal has no such characters.

    >>> sparkline([8.0, 6.0, 3.0, 1.0], 4)
    '█▆▃▁'
    """
    if not status.encoding.startswith("utf"):
        return ""
    size = max(1.0, len(values) / width)
    groups = [values[round(i * size) : round((i + 1) * size)] for i in range(round(len(values) / size))]
    means = [sum(group) / len(group) for group in groups if group]
    high = max(means)
    # From zero, so that a loss that stays at chance looks flat.
    levels = [math.ceil(len(_BARS) * mean / high) if mean > 0 else 1 for mean in means]
    return "".join(_BARS[level - 1] for level in levels)


class PlainProgress:
    """A line on standard error now and then, where no terminal shows a bar: at first, then about every minute."""

    def __init__(self, every_s: float = 60.0) -> None:
        self._every_s, self._said_at = every_s, -math.inf

    def show(self, line: str, *, at_once: bool = False) -> None:
        """Say a line if one is due, or at once."""
        if status.is_terminal or not (at_once or time.monotonic() - self._said_at >= self._every_s):
            return
        self._said_at = time.monotonic()
        click.echo(visible_line(line), err=True)


def facts(title: str, rows: dict[str, Any]) -> Table:
    """A two-column table of names and values."""
    result = Table(
        title=visible_line(title) or None,
        title_justify="left",
        title_style="",
        show_header=False,
        box=None,
        pad_edge=False,
    )
    result.add_column(style="bold")
    result.add_column(overflow="fold")
    for name, value in rows.items():
        result.add_row(name, value if isinstance(value, Text) else str(value))
    return result


def table(*columns: str, numbers: Collection[str] = ()) -> Table:
    """A table without lines; the columns in `numbers` are flush right, and long texts fold instead of being cut."""
    result = Table(box=None, pad_edge=False)
    for column in columns:
        result.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return result


def shortened(text: str, width: int, *, keep_end: bool = False) -> str:
    r"""A text on one line of so many columns, without control characters; it is cut at its end, or at its beginning.

    >>> shortened("a cat\nsits on a mat", 8), shortened("images/0001.jpg", 9, keep_end=True)
    ('a cat s…', '…0001.jpg')
    """
    line = _NO_PART_OF_A_LINE.sub(" ", text).strip()
    if cell_len(line) <= width:
        return line
    if keep_end:
        return "…" + set_cell_size(line[::-1], width - 1).rstrip()[::-1]
    return set_cell_size(line, width - 1).rstrip() + "…"


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{share:.1%}"
