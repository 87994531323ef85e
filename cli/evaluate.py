"""`clipglot eval …`."""

from pathlib import Path

import click

from ..cache.location import Location, to_location
from .options import require_kind
from .render import friendly_errors, json_option, output, percent, print_json, table


@click.group()
def evaluate() -> None:
    """Measure a merged CLIP."""


@evaluate.command()
@click.argument("merged", type=click.Path(path_type=Path))
@click.argument("cache", type=to_location)
@json_option
def retrieval(merged: Path, cache: Location, as_json: bool) -> None:
    """How often the captions of CACHE find their image and back, with the CLIP in MERGED.

    CACHE must come from the same image tower; no image is opened.
    """
    with friendly_errors():
        require_kind(merged, "merged CLIP")
        require_kind(cache, "cache")
        from ..cache.read.cache import Cache
        from ..encoders.merged_clip import load_merged
        from ..evals.retrieval import eval_retrieval

        report = eval_retrieval(load_merged(merged), Cache(cache))
    if as_json:
        print_json(report.to_json())
        return
    columns = ("direction", "R@1", "R@5", "R@10", "median rank", "queries", "candidates")
    rows = table(*columns, numbers=columns[1:])
    for direction, ranks in (("text → image", report.text_to_image), ("image → text", report.image_to_text)):
        recalls = (percent(r) for r in (ranks.r_at_1, ranks.r_at_5, ranks.r_at_10))
        counts = f"{ranks.num_queries:,}", f"{ranks.num_candidates:,}"
        rows.add_row(direction, *recalls, f"{ranks.median_rank:,.1f}", *counts)
    output.print(rows)
