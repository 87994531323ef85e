"""What `clipglot inspect` shows of a pass that is not over: its workers, as they say and as they are seen from here."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..cache.format import NOT_LAID_OUT
from ..cache.location import Location, is_hdf5
from ..cache.read.cache import Cache
from ..cache.storage.atomic import PARTIAL
from ..cache.storage.local import ZARR_JSON
from ..cache.storage.open import store_at
from ..cache.write.text_targets import missing_teacher_chunks
from ..cache.write.views import missing_views, num_begun
from ..cache.write.work_sharing import SILENT_S, Heartbeat, Liveness, read_signs
from .render import output, print_json, table, warn

LOOK_S = 3.0  # between two looks


@dataclass(frozen=True, kw_only=True)
class Look:
    """What one look at a pass found.

    Attributes:
        state: of the cache.
        chunks_done: stored, in all views that are begun.
        num_chunks: of all.
        captions_left: chunks of captions that a teacher has still to embed.
        signs: of the workers that have not left.
        silence_s: seconds without a new sign, by worker, as watched from here.
        changed: workers of which a new sign was seen.
    """

    state: str
    chunks_done: int
    num_chunks: int
    captions_left: int
    signs: dict[str, Heartbeat]
    silence_s: dict[str, float]
    changed: set[str]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do, and nobody there who does something; a dead worker may have left its sign."""
        living = any(silence < SILENT_S for silence in self.silence_s.values())
        return self.state == "sealed" and not living and self.chunks_done == self.num_chunks

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "state": self.state,
            "chunks_done": self.chunks_done,
            "num_chunks": self.num_chunks,
            "caption_chunks_left": self.captions_left,
            "workers": [
                asdict(sign) | {"seen_alive": name in self.changed, "silent_s": round(self.silence_s[name], 1)}
                for name, sign in self.signs.items()
            ],
        }


def looks(location: Location) -> Iterator[Look]:
    """Look at a pass again and again; the first look is at once.

    Raises:
        CacheError: no cache there, or a store that refuses.
    """
    watch = Liveness()
    while True:
        cache = Cache(location)
        planning = not cache.info.is_laid_out
        signs, now = {} if cache.is_one_file else read_signs(cache.store), monotonic()
        watch.look({name: (sign.host, sign.pid, sign.counter) for name, sign in signs.items()}, now)
        num_chunks = 0 if planning else cache.num_chunks
        yield Look(
            state=cache.info.state,
            chunks_done=0 if planning else num_chunks - len(missing_views(cache, num_begun(cache))),
            num_chunks=num_chunks,
            captions_left=len(missing_teacher_chunks(cache)) if cache.info.source.has_teacher and not planning else 0,
            signs=signs,
            silence_s={name: watch.silence_s(name, now) for name in signs},
            changed={name for name in signs if watch.was_seen_to_change(name)},
        )
        sleep(LOOK_S)


def watch_until_sealed(location: Location, *, as_json: bool) -> None:
    """Show how a pass gets on until it is over: a table that is drawn anew, or one JSON document a line.

    It may be begun before the pass has planned.
    """
    if not _is_begun(location):
        warn(f"waits until a `clipglot cache` command has begun {location}; Ctrl-C ends the waiting")
    while not _is_begun(location):
        sleep(LOOK_S)
    if as_json:
        for look in looks(location):
            print_json(look.to_json(), indent=None)
            if look.is_over:
                return
    with Live(console=output, auto_refresh=False) as live:
        for look in looks(location):
            live.update(show(look), refresh=True)
            if look.is_over:
                return


def _is_begun(location: Location) -> bool:
    """Whether a cache stands there, though its plan may not be whole; a file does not come to be by a pass."""
    if isinstance(location, Path) and is_hdf5(location):
        return True
    names = store_at(location, read_only=True).names("")
    return ZARR_JSON in names or not all(name.endswith(PARTIAL) for name in names)  # what else stands there is refused


def show(look: Look) -> Group:
    """The table of workers, what is done of the whole, and what cannot be known."""
    lines: list[Table | Text] = [Text(f"{look.chunks_done:,} of {look.num_chunks:,} chunks are stored ({look.state})")]
    if look.state in NOT_LAID_OUT:
        lines = [Text("being planned, or its plan was cut short: a plan gives no sign of life")]
    if look.captions_left:
        lines.append(Text(f"{look.captions_left:,} chunks of captions are left for the teacher, which comes first"))
    if look.signs:
        lines.append(_workers(look))
    if look.is_over or look.state in NOT_LAID_OUT:
        return Group(*lines)
    if not look.signs:
        lines.append(Text("nobody gives a sign of being at it: run its `clipglot cache` command again to go on"))
    elif not look.changed:
        lines.append(Text("whether they live cannot be told from one look: --watch takes more"))
    else:
        lines.append(Text("a worker that hangs in one batch still gives signs: its chunks done do not grow then"))
    return Group(*lines)


def _workers(look: Look) -> Table:
    numbers = ("chunks done", "images/s")
    shown = table("worker", "host", "at", "chunks done", "images/s", "waits for", "last sign", numbers=numbers)
    for name, sign in look.signs.items():
        at = f"{sign.stage} {', '.join(map(str, sign.chunks[:4]))}{', …' if len(sign.chunks) > 4 else ''}"
        silence = look.silence_s[name]
        if name in look.changed:
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
