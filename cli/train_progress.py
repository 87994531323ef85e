"""Progress of `clipglot train`: what the run is, a row an epoch above the bar, findings, and the curve of the loss."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.text import Text

from ..cache.progress import Progress
from .main import is_first_process
from .render import Bars, PlainProgress, facts, flags_in_colour, percent, shortened, sparkline, status, warn

if TYPE_CHECKING:
    from ..distill.training.diagnosis import Finding
    from ..distill.training.outline import EpochSummary, RunOutline

MAX_LANGUAGES = 8  # whose recall is shown after each epoch
MAX_PAST = 5  # epochs before a resume that are shown
CURVE = 48  # columns of the curve of the loss
# Columns of a row: heading and width.
COLUMNS = {"epoch": 9, "loss": 8, "of chance": 11, "R@1": 8, "R@5": 8, "R@10": 8, "median": 8, "images/s": 11}


class TrainProgress:
    """Shows a run as it goes: in a terminal a table above a bar, elsewhere a line an epoch and at most one a minute."""

    def __init__(self, bars: Bars, *, silent: bool) -> None:
        """Show at once that the run is being loaded, which takes seconds.

        Args:
            bars: shown only in a terminal.
            silent: whether only the bar and findings are shown.
        """
        self._bars, self._plain = bars, PlainProgress()
        self._silent = silent or not is_first_process()
        self._task, self._stage = bars.add_task("load", note="", total=None), "load"
        self._outline: RunOutline | None = None
        self._losses: list[float] = []
        self._has_headings = False

    def show(self, at: Progress) -> None:
        """Move the bar; a stage begins where it goes on, so that its speed counts what this process did."""
        if at.stage != self._stage:
            self._stage = at.stage
            self._bars.reset(self._task, description=at.stage, completed=at.done, total=at.total)
        else:
            self._bars.update(self._task, completed=at.done, total=at.total)

    def show_outline(self, outline: "RunOutline") -> None:
        """Show what the run is, and the epochs before a resume."""
        self._outline, self._losses = outline, list(outline.past_losses)
        if self._silent:
            return
        rows = outline.facts()
        if not status.is_terminal:
            for name, value in rows.items():
                self._plain.show(f"{name}: {value}", at_once=True)
            return
        status.print(facts("", rows))
        status.print()
        if outline.step:
            self._print_headings()
            earlier = len(outline.past) - MAX_PAST
            if earlier > 0:
                status.print(Text(f"{'…':>9}  {earlier:,} earlier epochs", style="dim"))
            for summary in outline.past[-MAX_PAST:]:
                status.print(Text(self._row(summary), style="dim"))
            status.print(Text(f"{'':>9}  resumed at step {outline.step:,}", style="dim italic"))

    def show_metrics(self, line: dict[str, Any]) -> None:
        """Show the last logged step beside the bar, or as a line once a minute."""
        if line["kind"] != "step":
            return
        self._losses.append(line["loss"])
        told = f"loss {line['loss']:.3f}, {line['pairs_per_s']:,.0f} images/s"
        self._bars.update(self._task, note=told)
        if not self._silent and self._outline:
            self._plain.show(f"step {line['step']:,} of {self._outline.num_steps:,}: {told}")

    def show_epoch(self, summary: "EpochSummary") -> None:
        """Show an epoch in one row."""
        if self._silent or self._outline is None:
            return
        if status.is_terminal:
            self._print_headings()
            row = Text(self._row(summary))
            if summary.is_best:
                row.append("  best", style="bold green")
            status.print(row, soft_wrap=True)
            for name, recall in [*summary.languages.items()][:MAX_LANGUAGES]:
                values = {"epoch": shortened(name, COLUMNS["epoch"] - 1), **_recall(recall)}
                status.print(Text(_line(values), style="dim"), soft_wrap=True)
            if len(summary.languages) > MAX_LANGUAGES:
                num = len(summary.languages) - MAX_LANGUAGES
                status.print(Text(f"{'…':>9}  {num:,} more languages in metrics.jsonl", style="dim"))
        else:
            self._plain.show(summary.line(self._outline), at_once=True)

    def show_finding(self, finding: "Finding") -> None:
        """Show what the diagnosis found, and the setting to change."""
        if not status.is_terminal:
            warn(f"{finding.title}: {finding.message}: {finding.advice} (docs/diagnosis.md)")
            return
        status.print(Text.assemble((finding.title, "bold yellow"), (f": {finding.message}", "yellow")), soft_wrap=False)
        advice = flags_in_colour(finding.advice)
        status.print(Text.assemble(("→ ", "bold"), advice, (" (docs/diagnosis.md)", "dim")), soft_wrap=False)

    def end(self) -> None:
        """Show the curve of the loss, in a terminal."""
        if self._silent or self._outline is None or not status.is_terminal or len(self._losses) < 3:
            return
        curve, chance = sparkline(self._losses, CURVE), self._outline.chance_loss
        if not curve:
            return
        shown = Text.assemble(("loss ", "bold"), f"{self._losses[0]:.2f} ", (curve, "cyan"), f" {self._losses[-1]:.2f}")
        if chance is not None:
            shown.append(f"   chance {chance:.2f}", style="dim")
        status.print(shown, soft_wrap=True)

    def _print_headings(self) -> None:
        """Head the table before its first row; findings about the captions come before it."""
        if not self._has_headings:
            status.print(Text("".join(f"{name:>{size}}" for name, size in COLUMNS.items()), style="bold"))
        self._has_headings = True

    def _row(self, summary: "EpochSummary") -> str:
        assert self._outline is not None
        recall, speed = summary.recall, summary.images_per_s
        loss = "" if summary.loss is None else f"{summary.loss:.3f}"
        values = {
            "epoch": f"{summary.epoch}/{self._outline.epochs}",
            "loss": loss,
            "of chance": self._outline.of_chance(summary.loss),
            **(_recall(recall) if recall else {}),
            "images/s": f"{speed:,.0f}" if speed else "",
        }
        return _line(values)


def _line(values: Mapping[str, str]) -> str:
    """Values in their columns."""
    shown = {name: values.get(name, "") for name in COLUMNS}
    return "".join(" " * (COLUMNS[name] - cell_len(value)) + value for name, value in shown.items()).rstrip()


def _recall(recall: Mapping[str, float]) -> dict[str, str]:
    """Values of the columns of recall."""
    return {f"R@{k}": percent(recall[f"r_at_{k}"]) for k in (1, 5, 10)} | {"median": f"{recall['median_rank']:,g}"}
