"""`clipglot demo`."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.panel import Panel
from rich.text import Text

from ..demo.settings import DemoSettings
from .main import INTERRUPTED
from .options import settings_options
from .render import facts, friendly_errors, json_option, output, percent, print_json, say, stage_bars, table
from .terminal import visible_line

if TYPE_CHECKING:
    from ..demo.run import DemoReport

EIGHTHS = ("", *"▏▎▍▌▋▊▉")
BAR = 20  # columns of an accuracy of 1
NAMES = {"en": "English", "ru": "Russian", "zh": "Chinese", "ko": "Korean"}


@click.command()
@settings_options(DemoSettings)
@json_option
def demo(settings: DemoSettings, as_json: bool) -> None:
    """Run the whole workflow offline on drawn images, in less than two minutes on two cores.

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
            click.echo("stopped: the demo cannot be resumed; run it again", err=True)
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
    """Print the scores as a bar chart, what the cache saved, and where to look next."""
    scores = table("text tower", "prompts", "zero-shot accuracy", "R@1", "R@10", numbers=("R@1", "R@10"))
    for score in report.scores:
        measures = (_with_bar(score.accuracy), percent(score.r_at_1), percent(score.r_at_10))
        style = "bold green" if score is report.scores[-1] else ""
        scores.add_row(score.tower, NAMES[score.prompts], *measures, style=style)
    chance = report.chance
    scores.add_row("guessing", "", _with_bar(chance["accuracy"]), *map(percent, list(chance.values())[1:]), style="dim")
    output.print(scores)
    cached_s = report.pass_s + report.train_s
    say("")
    say(f"Seconds: {', '.join(f'{stage} {seconds:.1f}' for stage, seconds in report.stage_s.items())}")
    say(
        f"{report.num_pictures:,} images went through the image tower once ({report.pass_s:.1f} s); {report.epochs} "
        f"epochs of training took {report.train_s:.1f} s."
    )
    say(
        f"Without the cache each epoch would need the image tower again: {report.uncached_s:.0f} s instead of "
        f"{cached_s:.0f} s, {report.uncached_s / cached_s:.1f} times as long."
    )
    merged = report.folder / "merged"
    rows: dict[str, str | Text] = {}
    if report.report:
        rows["report"] = Text(visible_line(str(report.report)), style=f"link {report.report.absolute().as_uri()}")
    else:
        rows["report"] = "not written: it needs pip install '.[report]' in a clone of clipglot"
    if not serves:
        rows["search page"] = "clipglot demo --serve"
        if kept:
            rows["search page"] = f"clipglot serve {merged} {report.folder / 'train.zarr'}"
    if kept:
        rows["merged CLIP"] = f'open_clip.create_model_and_transforms("local-dir:{merged}")'
    else:
        rows["keep all of it"] = "clipglot demo -o DIR"
    say("")
    if not output.is_terminal:
        for name, value in rows.items():
            say(f"{name}: {value}")
        return
    shown = facts("", rows)
    output.print(Panel(shown, title="Look at it", title_align="left", border_style="green", expand=False))


def _with_bar(share: float) -> str:
    """A share as a bar of a chart and in figures; in figures alone where there is no terminal to draw on."""
    if not (output.is_terminal and output.encoding.startswith("utf")):
        return percent(share)
    eighths = round(share * BAR * 8)
    bar = "█" * (eighths // 8) + EIGHTHS[eighths % 8]
    return f"{bar:<{BAR}} {percent(share):>6}"


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
