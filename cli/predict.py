"""`clipglot predict`."""

import csv
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..cache.location import did_you_mean
from ..jobs.settings.predict import PredictSettings
from .options import require_kind, settings_options
from .render import friendly_errors, json_option, output, percent, print_json, stage_bars, table, warn

if TYPE_CHECKING:
    from ..evals.predict import Prediction

CSV_COLUMNS = ("image", "rank", "text", "probability", "cosine", "error")


@click.command()
@settings_options(PredictSettings, "merged", "images", has_config=False)
@click.option("--csv", "as_csv", is_flag=True, help=f"print CSV instead: {', '.join(CSV_COLUMNS)}")
@json_option
def predict(settings: PredictSettings, as_csv: bool, as_json: bool) -> None:
    """Rank descriptions by how well they fit each of IMAGES, with the CLIP in MERGED.

    Probabilities are relative to the given descriptions: they add up to 100 %. An image that cannot be read is
    listed with the reason.

    \b
    clipglot predict merged cat.jpg --text "кошка" --text "собака"
    clipglot predict merged photos --texts classes.txt --top 3 --csv
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other: pass one of them")
    if not settings.text and settings.texts is None:
        raise click.UsageError("Missing option '--text' or '--texts'.")
    with friendly_errors(), stage_bars("predict") as on_progress:
        require_kind(settings.merged, "merged CLIP")
        for image in settings.images:
            if not os.path.lexists(image):
                raise click.ClickException(f"{image}: no such file or folder{did_you_mean(image)}")
        from ..jobs.predict import predict as predict_texts

        predictions = predict_texts(settings, on_progress)
    failed = [prediction for prediction in predictions if prediction.error]
    if as_json:
        print_json([asdict(prediction) for prediction in predictions])
    elif as_csv:
        _print_csv(predictions)
    else:
        _print_table(predictions)
    if failed and not as_json:
        first = failed[0]
        warn(f"{len(failed):,} of {len(predictions):,} images could not be read, e.g. {first.image}: {first.error}")


def _print_table(predictions: Sequence["Prediction"]) -> None:
    rows = table("image", "text", "probability", "cosine", numbers=("probability", "cosine"))
    for prediction in predictions:
        if prediction.error:
            rows.add_row(prediction.image, f"({prediction.error})", "", "", style="dim")
        scores = zip(prediction.texts, prediction.probabilities, prediction.cosines, strict=True)
        for rank, (text, probability, cosine) in enumerate(scores):
            name, style = (prediction.image, "bold") if rank == 0 else ("", None)
            rows.add_row(name, text, percent(probability), f"{cosine:.3f}", style=style)
    output.print(rows)


def _print_csv(predictions: Sequence["Prediction"]) -> None:
    # A program reads the very texts; on a terminal, control characters are written out.
    exact = sys.stdout if sys.stdout.isatty() else getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    writer = csv.writer(exact, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for prediction in predictions:
        if prediction.error:
            writer.writerow([prediction.image, "", "", "", "", prediction.error])
        scores = zip(prediction.texts, prediction.probabilities, prediction.cosines, strict=True)
        for rank, (text, probability, cosine) in enumerate(scores, 1):
            writer.writerow([prediction.image, rank, text, probability, cosine, ""])
