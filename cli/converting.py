"""`clipglot convert`."""

from dataclasses import asdict
from pathlib import Path

import click

from ..cache.location import Location
from ..cache.store import Cache
from .caching import cache_argument
from .folders import require_kind
from .options import LocalPath
from .render import friendly_errors, json_option, print_json, progress_bar, say


@click.command()
@cache_argument
@click.argument("out", type=LocalPath(path_type=Path))
@json_option
def convert(cache: Location, out: Path, as_json: bool) -> None:
    """Copy CACHE to OUT: one HDF5 file if its name ends in .h5, else Zarr.

    CACHE is a sealed cache of either kind, or the URL of one. Every checksum is
    checked, and OUT appears only when all of it is there.

    \b
    clipglot convert train.zarr train.h5
    clipglot convert s3://bucket/train.zarr train.zarr
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), progress_bar() as progress:
        from ..cache.convert import convert as copy

        require_kind(cache, "cache")
        task = progress.add_task("convert", total=None, note="")
        opened = Cache(cache)
        done = copy(opened, out, lambda done, total: progress.update(task, completed=done, total=total))
    if as_json:
        print_json({"cache": str(cache), "output": str(out), "num_pictures": len(opened)} | asdict(done))
        return
    say(
        f"{out}: {len(opened):,} pictures, {done.num_chunks:,} chunks, {done.num_bytes / 1e6:,.1f} MB in "
        f"{done.wall_s:.1f} s; every checksum of {cache} held"
    )
