"""`clipglot eval …`."""

import click

from ..jobs.settings.evaluate import RetrievalSettings
from .options import require_kind, settings_options
from .render import friendly_errors, json_option, output, percent, print_json, table


@click.group()
def evaluate() -> None:
    """Measure a merged CLIP."""


@evaluate.command()
@settings_options(RetrievalSettings, "merged", "cache", has_config=False)
@json_option
def retrieval(settings: RetrievalSettings, as_json: bool) -> None:
    """Recall of the CLIP in MERGED on the images and captions of CACHE, in both directions.

    CACHE must come from the same image tower; no image is opened. Equal captions
    are one text: every image that has it is a right answer to it, and every
    caption with a text of an image is one to that image.
    """
    with friendly_errors():
        require_kind(settings.merged, "merged CLIP")
        require_kind(settings.cache, "cache")
        from ..jobs.evaluate import evaluate_retrieval

        report = evaluate_retrieval(settings)
    if as_json:
        print_json(report.to_json())
        return
    columns = ("direction", "R@1", "R@5", "R@10", "median rank", "queries", "candidates")
    rows = table(*columns, numbers=columns[1:])
    for direction, ranks in (("text → image", report.text_to_image), ("image → text", report.image_to_text)):
        recalls = (percent(recall) for recall in (ranks.r_at_1, ranks.r_at_5, ranks.r_at_10))
        counts = f"{ranks.num_queries:,}", f"{ranks.num_candidates:,}"
        rows.add_row(direction, *recalls, f"{ranks.median_rank:,.1f}", *counts)
    output.print(rows)
