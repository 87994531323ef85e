"""`clipglot index`."""

from dataclasses import asdict

import click

from ..distill.training.signals import interrupted_by_sigterm
from ..jobs.settings.index import IndexSettings
from .options import require_kind, settings_options
from .render import facts, friendly_errors, json_option, output, percent, print_json, say, stage_bars, warn


@click.command()
@settings_options(IndexSettings, "cache")
@json_option
def index(settings: IndexSettings, as_json: bool) -> None:
    """Write an index of CACHE, for search among hundreds of thousands of images.

    An exact search reads every embedding; an index reads some and finds the share
    of --recall. Recall is measured by texts, the captions as --clip embeds them,
    and is part of the file. Fewer than 200,000 images need no index.

    \b
    clipglot index train.zarr -o train.index --clip merged
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), interrupted_by_sigterm(), stage_bars("load") as on_progress:
        require_kind(settings.cache, "cache")
        if settings.clip:
            require_kind(settings.clip, "merged CLIP")
        from ..jobs.index import SMALL_ROWS, build_index

        result = build_index(settings, on_progress, on_note=warn)
    if as_json:
        print_json(asdict(result) | {"file": str(result.file)})
        return
    rows = {
        "images": f"{result.num_rows:,} in {result.num_lists:,} lists",
        "a search reads": f"{result.num_probes:,} lists, and scores {result.depth:,} rows again for ten images",
        "recall@10": f"{percent(result.recall)} against exact search, by {result.num_queries:,} {result.queries}",
        "size": f"{result.num_bytes / 1e6:,.1f} MB",
        "time": f"{result.wall_s:.1f} s, of which {result.build_s:.1f} s for the lists",
    }
    output.print(facts(str(result.file), rows))
    if result.recall < result.target:
        say(f"recall is below --recall {result.target:g}: raise --recall, or measure with more texts (--num-queries)")
    if result.is_small:
        say(f"{result.num_rows:,} images need no index: below {SMALL_ROWS:,}, search without one is as fast and exact")
