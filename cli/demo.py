"""`clipglot demo`."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from ..demo.settings import DemoSettings
from .main import INTERRUPTED
from .options import settings_options
from .render import friendly_errors, json_option, output, percent, print_json, say, stage_bars

if TYPE_CHECKING:
    from ..demo.run import DemoReport

NAMES = {"en": "English", "ru": "Russian", "zh": "Chinese", "ko": "Korean"}


@click.command()
@settings_options(DemoSettings)
@json_option
def demo(settings: DemoSettings, as_json: bool) -> None:
    """Run the whole workflow offline on drawn images; about two minutes on two cores.

    A small English CLIP comes with the package. Its image tower embeds the images once; a text tower learns another
    language from that cache alone; both are merged, and plain open_clip measures the result on combinations of colour
    and shape that no training image shows.
    """
    if settings.serve and as_json:
        raise click.UsageError("--serve and --json exclude each other: pass one of them")
    if settings.serve:
        from ..jobs.serve import require_servable

        with friendly_errors():
            require_servable(settings.port)
    with friendly_errors(), _folder(settings.output) as folder:
        from ..demo.run import run_demo

        try:
            with stage_bars("draw") as on_progress:
                report = run_demo(settings, folder, on_progress)
            if report.report and settings.output is None:
                report = replace(report, report=_kept(report.report))
        except KeyboardInterrupt:
            click.echo("stopped: the demo cannot be resumed, run it again", err=True)
            raise SystemExit(INTERRUPTED) from None
        if as_json:
            paths = {"folder": str(report.folder), "report": report.report and str(report.report)}
            print_json(asdict(report) | paths | {"uncached_s": report.uncached_s})
            return
        _print(report, kept=settings.output is not None, serves=settings.serve)
        if settings.serve:
            _serve(report, settings)


def _serve(report: "DemoReport", settings: DemoSettings) -> None:
    """Search the drawings, with the English tower beside the new one, until Ctrl-C."""
    from ..demo.run import ENGLISH_CLIP
    from ..jobs.serve import serve
    from ..jobs.settings.serve import ServeSettings

    caches = tuple(report.folder / name for name in ("train.zarr", "unseen.zarr"))
    serving = ServeSettings(merged=report.folder / "merged", caches=caches, against=(ENGLISH_CLIP,), port=settings.port)
    serve(serving, on_ready=lambda served: say(f"Search the drawings: {served.url} (Ctrl-C ends)"))


def _print(report: "DemoReport", *, kept: bool, serves: bool) -> None:
    table = Table("text tower", "prompts", "zero-shot accuracy", "R@1", "R@10", box=None, pad_edge=False)
    for score in report.scores:
        measures = (percent(score.accuracy), percent(score.r_at_1), percent(score.r_at_10))
        table.add_row(score.tower, NAMES[score.prompts], *measures)
    table.add_row("chance", "", *map(percent, report.chance.values()), style="dim")
    output.print(table)
    stages = Table("stage", "seconds", box=None, pad_edge=False)
    for stage, seconds in report.stage_s.items():
        stages.add_row(stage, f"{seconds:.1f}")
    output.print()
    output.print(stages)
    cached_s = report.pass_s + report.train_s
    say("")
    say(
        f"The image tower saw {report.num_pictures:,} images once ({report.pass_s:.1f} s); "
        f"training took {report.train_s:.1f} s for {report.epochs} epochs."
    )
    say(
        f"With the images through the tower in every epoch it would have taken {report.uncached_s:.0f} s "
        f"instead of {cached_s:.0f} s: {report.uncached_s / cached_s:.1f} times as long."
    )
    if kept:
        code = f'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{report.folder / "merged"}")'
        say(f"The merged CLIP: {code}; model.eval()")
    else:
        what = "Only the report" if report.report else "Nothing"
        say(f"{what} was kept; clipglot demo -o DIR keeps images, caches, the run and the merged CLIP.")
    if kept and not serves:
        say(f"Search the drawings: clipglot serve {report.folder / 'merged'} {report.folder / 'train.zarr'}")
    elif not serves:
        say("Search the drawings from a browser: clipglot demo --serve")
    if report.report:
        say(f"The report, for a browser: {report.report}")
    else:
        say("No report was written: it needs pip install 'clipglot[report]'")


def _kept(page: Path) -> Path:
    """A copy of the report that stays when the folder of the demo is deleted."""
    descriptor, name = tempfile.mkstemp(prefix="clipglot-demo-", suffix=".html")
    with os.fdopen(descriptor, "wb") as file:
        file.write(page.read_bytes())
    return Path(name)


@contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    """The folder to work in: the given one, which must be new or empty, or a temporary one."""
    if output is None:
        with tempfile.TemporaryDirectory(prefix="clipglot-demo-") as folder:
            yield Path(folder)
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise click.ClickException(f"{output} exists and is not empty: choose another -o")
    output.mkdir(parents=True, exist_ok=True)
    yield output
