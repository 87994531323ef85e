"""`clipglot inspect`."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice

import click
from rich.cells import cell_len
from rich.table import Table

from ..cache.format import EXPLANATION, Status
from ..cache.location import Location
from ..cache.read.cache import Cache
from ..cache.read.preview import CaptionedImage, sample_captioned_images
from .describe import contents, languages, left_out, sources, teacher, views
from .inspect_watch import looks, show, watch_until_sealed
from .options import cache_argument, require_kind
from .render import facts, friendly_errors, json_option, output, print_json, say, shortened, table


class _Inspect(click.Command):
    """Takes `--failures` with a number or without; click would take CACHE for it, or -1 for an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Make one word of the option and its number, and give it one where none stands."""
        joined: list[str] = []
        for arg in args:
            if joined[-1:] == ["--failures"]:
                is_number = re.fullmatch(r"-?\d+", arg)
                joined[-1:] = [f"--failures={arg}"] if is_number else ["--failures=-1", arg]
            else:
                joined.append(arg)
        return super().parse_args(ctx, [f"{arg}=-1" if arg == "--failures" else arg for arg in joined])


@click.command(cls=_Inspect)
@cache_argument
@click.option(
    "--failures",
    type=int,
    default=10,
    show_default=True,
    metavar="[N]",
    help="failed images to list; all without a number, or with -1",
)
@click.option(
    "--pairs",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="images to list with their first caption, spread evenly over the cache",
)
@click.option("--watch", is_flag=True, help="show how its workers get on, until the pass is over")
@json_option
@friendly_errors()
def inspect(cache: Location, failures: int, pairs: int, watch: bool, as_json: bool) -> None:
    """Show what is in CACHE, what failed and why; of a pass that is not over, its workers too."""
    require_kind(cache, "cache")
    if watch:
        watch_until_sealed(cache, as_json=as_json)
        return
    opened = Cache(cache)
    opened.require_laid_out()
    listed = list(islice(opened.failures(), None if failures < 0 else failures)) if failures else []
    shown, num_uncaptioned = sample_captioned_images(opened, pairs)
    look = next(looks(cache))
    if as_json:
        print_json(
            contents(opened)
            | look.to_json()
            | {"num_uncaptioned": num_uncaptioned, "pairs": [asdict(pair) for pair in shown]}
            | {"failures": [{"row": f.row, "key": f.key, "status": f.status.label} for f in listed]}
        )
        return
    info, counts = opened.info, opened.count_status()
    encoder = f"{info.encoder.model}{f' / {info.encoder.pretrained}' if info.encoder.pretrained else ''}"
    output.print(
        facts(
            str(cache),
            {
                "state": info.state
                if info.state == "sealed"
                else f"{info.state}: not complete, run it again to resume",
                "images": f"{info.num_pictures:,}",
                "captions": f"{info.num_captions:,}"
                + "".join(f", {count:,} dropped ({reason})" for reason, count in info.dropped_captions.items()),
                "without captions": f"{num_uncaptioned:,} images",
                **languages(opened),
                "embeddings": f"{info.num_views} × {info.num_pictures:,} × {info.encoder.dim} float16, "
                f"{opened.num_chunks:,} chunk{'s'[: opened.num_chunks != 1]} of {info.chunk_rows:,} rows",
                **views(opened),
                **({} if info.num_duplicates is None else {"exact duplicates": f"{info.num_duplicates:,}"}),
                "image tower": encoder,
                "its sha256": info.encoder.weights_sha256,
                "preprocessing": ", ".join(f"{k} {v}" for k, v in info.encoder.preprocess.items()),
                "precision": info.encoder.precision,
                "decoding": info.decoding,
                **({"teacher": teacher(opened)} if info.source.has_teacher else {}),
                **sources(info),
                **left_out(info),
                "made with": ", ".join(f"{name} {v}" for name, v in info.libraries.items()),
            },
        )
    )
    if shown:
        output.print()
        output.print(_pairs(shown, "image" if info.source.images else "translation"))
    shares = table("status", "images", "share", "meaning", numbers=("images", "share"))
    for status, count in counts.items():
        share = f"{count / len(opened):.2%}"
        style = None if status == Status.EMBEDDED else "yellow"
        shares.add_row(status.label, f"{count:,}", share, EXPLANATION[status], style=style)
    output.print()
    output.print(shares)
    if not look.is_over:
        output.print()
        output.print(show(look))
    if listed:
        failed = table("row", "status", "image", numbers=("row",))
        for failure in listed:
            failed.add_row(str(failure.row), failure.status.label, failure.key)
        output.print()
        output.print(failed)
        num_failed = sum(count for status, count in counts.items() if status > Status.EMBEDDED)
        if num_failed > len(listed):
            say(f"… and {num_failed - len(listed):,} more: --failures lists all")


def _pairs(pairs: Sequence[CaptionedImage], what: str) -> Table:
    """A line for each, cut to the width of the terminal: of an image's name the end tells most."""
    names = ("row", what, "captions", "first caption")
    listed = table(*names, numbers=("row", "captions"))
    rows = [
        (
            str(pair.row),
            shortened(pair.key, output.width // 3, keep_end=what == "image"),
            f"{pair.num_captions:,}",
        )
        for pair in pairs
    ]
    widths = [max(map(cell_len, column)) for column in zip(names[:3], *rows, strict=True)]
    left = max(1, output.width - sum(widths) - 2 * len(widths))  # two columns between two
    for pair, row in zip(pairs, rows, strict=True):
        listed.add_row(*row, "-" if pair.caption is None else shortened(pair.caption, left))
    return listed
