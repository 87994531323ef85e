"""`clipglot bench`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..jobs.settings.bench import BenchSettings
from .main import INTERRUPTED
from .options import require_kind, settings_options
from .render import facts, friendly_errors, json_option, output, print_json, stage_bars, table

if TYPE_CHECKING:
    from ..jobs.bench import BenchReport


@click.command()
@settings_options(BenchSettings, "cache")
@json_option
def bench(settings: BenchSettings, as_json: bool) -> None:
    """Measure how fast this machine trains, each time as a ratio to a reference.

    Text tower, whole step, data loading, loss and reads, on the embeddings and captions of CACHE or on synthetic
    ones. Files are written to a temporary folder only.
    """
    with friendly_errors(), stage_bars("prepare") as on_progress:
        if settings.cache:
            require_kind(settings.cache, "cache")
        try:
            from ..jobs.bench import bench as run_bench

            report = run_bench(settings, on_progress)
        except KeyboardInterrupt:
            click.echo("stopped: a benchmark cannot be resumed; run it again", err=True)
            raise SystemExit(INTERRUPTED) from None
    if as_json:
        print_json(asdict(report) | {"measures": [measure.to_json() for measure in report.measures]})
    else:
        _print(report)


def _print(report: "BenchReport") -> None:
    output.print(
        facts(
            report.machine,
            {
                "torch": f"{report.torch}, {report.threads} threads, {report.precision}"
                + ", compiled" * report.compiled,
                "tower": f"{report.num_parameters / 1e6:.1f} M parameters",
                "batch": f"{report.batch_size:,} captions of {report.tokens_per_caption:.1f} tokens",
                "tower alone": f"{report.captions_per_s:,.0f} captions/s, {report.tokens_per_s:,.0f} tokens/s",
            },
        )
    )
    numbers = ("reached", "there", "ratio", "lowest", "highest")
    rows = table("what", "reached", "unit", "against", *numbers[1:], numbers=numbers)
    for measure in report.measures:
        ratios = (f"{ratio:.3g}" for ratio in (measure.ratio, *measure.spread))
        value, reference = (_short(number) for number in (measure.value, measure.reference))
        rows.add_row(measure.what, value, measure.unit, measure.against, reference, *ratios)
    output.print()
    output.print(rows)


def _short(number: float) -> str:
    """Three significant digits, and every digit before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
