"""`clipglot inspect`."""

import re
from collections.abc import Sequence

import click
from rich.cells import cell_len

from ..cache.format import EXPLANATION, NOT_LAID_OUT, Status
from ..cache.location import Location
from ..cache.read.preview import CaptionedImage
from ..jobs.inspect import InspectReport, PassState, inspect_cache, watch_pass
from ..jobs.settings.inspect import InspectSettings
from .describe import cache_facts
from .options import require_kind, settings_options
from .render import (
    PlainProgress,
    Table,
    facts,
    friendly_errors,
    json_option,
    output,
    print_json,
    progress_bar,
    say,
    shortened,
    table,
    warn,
)


class _InspectCommand(click.Command):
    """A command whose `--failures` takes a number or none; click would take CACHE for it, or -1 for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the option and its number to one word, with -1 where none is given."""
        joined: list[str] = []
        for arg in args:
            if joined[-1:] == ["--failures"]:
                is_number = re.fullmatch(r"-?\d+", arg)
                joined[-1:] = [f"--failures={arg}"] if is_number else ["--failures=-1", arg]
            else:
                joined.append(arg)
        return super().parse_args(ctx, [f"{arg}=-1" if arg == "--failures" else arg for arg in joined])


@click.command(cls=_InspectCommand)
@settings_options(InspectSettings, "cache", has_config=False)
@click.option("--watch", is_flag=True, help="show how many chunks are stored until the pass is over")
@json_option
def inspect(settings: InspectSettings, watch: bool, as_json: bool) -> None:
    """Show what CACHE contains, what failed and why, and how far an unfinished pass is."""
    with friendly_errors():
        if watch:  # perhaps before the pass has begun
            _watch(settings.cache, as_json=as_json)
            return
        require_kind(settings.cache, "cache")
        report = inspect_cache(settings)
        if as_json:
            print_json(report.to_json())
        else:
            _print(report, str(settings.cache))


def _watch(location: Location, *, as_json: bool) -> None:
    """Show how a pass gets on until it is over, perhaps before it has begun: a bar, lines, or JSON documents."""
    plain, last = PlainProgress(), ""
    with progress_bar() as bars:
        task = bars.add_task("chunks", total=None, note="")
        for state in watch_pass(location):
            if state is None:
                if not last:
                    warn(last := f"waiting for a `clipglot cache` command to begin {location}; Ctrl-C stops")
                continue
            last = _progress(state)
            if as_json:
                print_json(state.to_json(), indent=None)
            else:
                bars.update(task, completed=state.chunks_done, total=state.num_chunks or None, note=state.state)
                plain.show(last)
    if not as_json:
        say(last)


def _progress(state: PassState) -> str:
    """How far a pass is, in a line."""
    if state.state in NOT_LAID_OUT:
        return "being planned, or planning was interrupted"
    line = f"{state.chunks_done:,} of {state.num_chunks:,} chunks are stored ({state.state})"
    if state.captions_left:
        line += f"; {state.captions_left:,} chunks of captions are left for the teacher, which comes first"
    return line


def _print(report: InspectReport, title: str) -> None:
    contents = report.contents
    num_images = len(contents.cache)
    output.print(facts(title, cache_facts(report)))
    if report.pairs:
        output.print()
        output.print(_pairs_table(report.pairs, "image" if contents.cache.info.source.images else "translation"))
    shares = table("status", "images", "share", "meaning", numbers=("images", "share"))
    for status, num in contents.num_by_status.items():
        style = None if status == Status.EMBEDDED else "yellow"
        shares.add_row(status.label, f"{num:,}", f"{num / num_images:.2%}", EXPLANATION[status], style=style)
    output.print()
    output.print(shares)
    if not report.pass_state.is_over:
        output.print()
        say(_progress(report.pass_state))
    if report.failures:
        failed = table("row", "status", "image", numbers=("row",))
        for failure in report.failures:
            failed.add_row(str(failure.row), failure.status.label, failure.key)
        output.print()
        output.print(failed)
        if contents.num_failed > len(report.failures):
            say(f"… and {contents.num_failed - len(report.failures):,} more: --failures lists all")


def _pairs_table(pairs: Sequence[CaptionedImage], key_name: str) -> Table:
    """One line a pair, cut to the width of the terminal; of an image's path the end is kept, which tells most."""
    names = ("row", key_name, "captions", "first caption")
    listed = table(*names, numbers=("row", "captions"))
    rows = [
        (
            str(pair.row),
            shortened(pair.key, output.width // 3, keep_end=key_name == "image"),
            f"{pair.num_captions:,}",
        )
        for pair in pairs
    ]
    widths = [max(map(cell_len, column)) for column in zip(names[:3], *rows, strict=True)]
    left = max(1, output.width - sum(widths) - 2 * len(widths))  # two columns between two
    for pair, row in zip(pairs, rows, strict=True):
        listed.add_row(*row, "-" if pair.caption is None else shortened(pair.caption, left))
    return listed
