"""`clipglot export` and `predict`."""

from dataclasses import asdict
from pathlib import Path

import click

from ..jobs.settings.export import ExportSettings
from .options import require_kind, settings_options
from .render import friendly_errors, json_option, output, percent, print_json, say, table


@click.command()
@settings_options(ExportSettings, "run")
@json_option
def export(settings: ExportSettings, as_json: bool) -> None:
    """Merge the image tower that RUN's cache was made with and RUN's text tower into one CLIP.

    The image tower is rebuilt, checked against the cache by its hash and by embedding a few cached images again,
    and the folder is loaded once as its users will before it gets its name.

    \b
    clipglot export run -o merged
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors():
        require_kind(settings.run, "run")
        from ..jobs.export import export_run

        result = export_run(settings)
    if as_json:
        print_json(asdict(result) | {"folder": str(result.folder)})
        return
    if result.num_probes:
        probes = f"{result.num_probes} cached images embedded again, worst cosine {result.min_cosine:.6f}"
    else:
        probes = f"no cached image could be embedded again: {result.why_no_probes}"
    say(f"{result.folder}: image tower matches its hash; {result.loaded_by} loads both towers; {probes}")
    for line in filter(None, result.code.splitlines()):
        say(line)


@click.command()
@click.argument("merged", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, required=True, help="a description to choose from; repeat it")
@json_option
def predict(merged: Path, images: tuple[Path, ...], texts: tuple[str, ...], as_json: bool) -> None:
    """Order descriptions by how well they fit each of IMAGES, with the CLIP in MERGED.

    \b
    clipglot predict merged cat.jpg --text "кошка" --text "собака"
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors():
        require_kind(merged, "merged CLIP")
        from ..encoders.merged_clip import load_merged
        from ..evals.predict import predict as run_prediction

        predictions = run_prediction(load_merged(merged), images, texts)
    if as_json:
        print_json([asdict(prediction) for prediction in predictions])
        return
    answers = table("image", "text", "probability", "cosine", numbers=("probability", "cosine"))
    for prediction in predictions:
        scores = zip(prediction.texts, prediction.probabilities, prediction.cosines, strict=True)
        for place, (text, probability, cosine) in enumerate(scores):
            name = prediction.image if place == 0 else ""
            answers.add_row(name, text, percent(probability), f"{cosine:.3f}", style="bold" if place == 0 else None)
    output.print(answers)
