"""`clipglot report`."""

from pathlib import Path

import click

from ..cache.location import did_you_mean
from ..inference.onnx_layout import is_onnx
from ..jobs.settings.report import ReportSettings
from .options import SectionedCommand, require_kind, settings_options
from .render import friendly_errors, json_option, print_json, say, stage_bars

SECTIONS = {
    "Another CLIP": "against translations against_classes against_templates",
    "Classes and prompts": "classes classes_language templates distractors labels label_field key_field",
    "Measurements": "shots seeds speed",
    "Images": "image_root thumbnails",
}


@click.command(cls=SectionedCommand, start="runs output cache against classes templates", sections=SECTIONS)
@settings_options(ReportSettings, "runs")
@json_option
def report(settings: ReportSettings, as_json: bool) -> None:
    """Show what was learned by RUNS, which may also be merged CLIPs, in one HTML file.

    The file has no script and loads nothing.

    \b
    clipglot report run -o report.html
    clipglot report merged --cache val.zarr --cache classes.zarr -o report.html
    clipglot report run-a run-b run-c -o compared.html

    A run shows its curves and findings, and is measured on the cache of its --val. A
    cache of class folders, or of images whose only caption is their class, is
    measured by zero-shot classification, other caches by retrieval.
    """  # noqa: D301 (click reads the character \b, so the string is not raw)
    with friendly_errors(), stage_bars("encode texts") as on_progress:
        for path in settings.runs:
            _require_run(path)
        for cache in settings.cache:
            require_kind(cache, "cache")
        from ..jobs.report import report as write_report

        result = write_report(settings, on_progress)
    if as_json:
        print_json(result.to_json())
        return
    say(result.report.verdict)
    for note in result.report.notes:
        say(note)
    say(f"{result.file}: {result.size / 1e6:.2f} MB, {result.num_thumbnails:,} thumbnails")


def _require_run(path: Path) -> None:
    """Refuse what is neither a run nor a merged CLIP before anything slow is imported.

    Raises:
        click.ClickException: says what it is.
    """
    if (path / "run.json").exists():
        return
    if (path / "open_clip_config.json").is_file() or is_onnx(path):
        return
    if not path.exists():
        raise click.ClickException(
            f"{path}: no such folder{did_you_mean(path)}: pass the folder of a run or of a merged CLIP"
        )
    require_kind(path, "run")
