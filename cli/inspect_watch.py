"""What `clipglot inspect` shows of a pass that is not over: its workers, as they say and as they are seen from here."""

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..cache.format import NOT_LAID_OUT
from ..cache.location import Location
from ..cache.write.work_sharing import SILENT_S
from ..jobs.pass_state import PassState, is_begun, pass_states, wait_until_begun
from .render import output, print_json, table, warn


def watch_until_sealed(location: Location, *, as_json: bool) -> None:
    """Show how a pass gets on until it is over: a table that is drawn anew, or one JSON document a line.

    It may be begun before the pass has planned.
    """
    if not is_begun(location):
        warn(f"waiting for a `clipglot cache` command to begin {location}; Ctrl-C stops")
        wait_until_begun(location)
    if as_json:
        for state in pass_states(location):
            print_json(state.to_json(), indent=None)
            if state.is_over:
                return
    with Live(console=output, auto_refresh=False) as live:
        for state in pass_states(location):
            live.update(pass_table(state), refresh=True)
            if state.is_over:
                return


def pass_table(state: PassState) -> Group:
    """The table of workers, what is done of the whole, and what cannot be known."""
    lines: list[Table | Text] = [
        Text(f"{state.chunks_done:,} of {state.num_chunks:,} chunks are stored ({state.state})")
    ]
    if state.state in NOT_LAID_OUT:
        lines = [Text("being planned, or planning was interrupted; planning sends no heartbeat")]
    if state.captions_left:
        lines.append(Text(f"{state.captions_left:,} chunks of captions are left for the teacher, which comes first"))
    if state.signs:
        lines.append(_workers(state))
    if state.is_over or state.state in NOT_LAID_OUT:
        return Group(*lines)
    if not state.signs:
        lines.append(Text("no worker is active: run its `clipglot cache` command again to go on"))
    elif not state.changed:
        lines.append(Text("one look cannot tell whether they are alive: pass --watch"))
    else:
        lines.append(Text("a worker that hangs in one batch still sends heartbeats, but finishes no more chunks"))
    return Group(*lines)


def _workers(state: PassState) -> Table:
    numbers = ("chunks done", "images/s")
    shown = table("worker", "host", "at", "chunks done", "images/s", "waits for", "last sign", numbers=numbers)
    for name, sign in state.signs.items():
        at = f"{sign.stage} {', '.join(map(str, sign.chunks[:4]))}{', …' if len(sign.chunks) > 4 else ''}"
        silence = state.silence_s[name]
        if name in state.changed:
            last, style = f"{silence:.0f} s ago", None
        elif silence:
            last, style = f"none in {silence:.0f} s", "yellow"
        else:
            last, style = "not watched yet", None
        if silence >= SILENT_S:
            last, style = f"none in {silence:.0f} s: taken for dead", "red"
        shown.add_row(
            f"{sign.worker} of {sign.of}",
            f"{sign.host} ({sign.pid})",
            at.strip(),
            f"{sign.chunks_done:,}",
            f"{sign.pictures_per_s:,.0f}",
            sign.bottleneck or "-",
            last,
            style=style,
        )
    return shown
