r"""A report as one HTML file: no script, no address, light and dark, for the screen and for paper.

Text of users is text alone: the template escapes it, controls are written out, and each piece has a direction of its
own (`<bdi>`).

>>> printable("a\x1b[31m\u202egnp")
'a\\x1b[31m\\u202egnp'
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..distill.train_settings import TrainSettings
from ..evals.zeroshot import ClassificationReport
from . import charts
from .charts import Chart, Level, Line, Star
from .figures import EVERYTHING, CacheFigures, Report, RunFigures
from .verdict import main_figure, percent

TEMPLATE = Path(__file__).parent / "template.html.j2"
MOST_IN_MATRIX, MOST_COLUMNS = 30, 40  # classes; of more, the most confused pairs are shown
MOST_CONFUSED = 20
MOST_CLASSES = 40  # rows of the table of classes; of more, the worst and the best
DECADES = 8  # ratio of the largest value to the smallest, from which a scale is logarithmic
SHOWN_TEXT = 300  # characters of a text
# As `cli/terminal.py`: controls, separators of lines, marks that change the direction, halves of a character; and
# what is no character.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r"}


@dataclass(frozen=True, kw_only=True)
class ShownChart:
    """A chart of the page.

    Attributes:
        title: above it.
        svg: the drawing.
        told: what it shows, for those who do not see it.
        legend: name and number of the colour of each line, where the section's legend does not tell.
    """

    title: str
    svg: Any
    told: str
    legend: list[tuple[str, int]]


Thumbnails = Sequence[Mapping[int, str]]
"""For each cache the data URIs of images by row."""


def write_page(report: Report, thumbnails: Thumbnails) -> str:
    """The HTML of a report.

    Args:
        report: its figures.
        thumbnails: for each cache of the report.

    Raises:
        EvalError: matplotlib or Jinja2 is not installed.
    """
    charts.require_matplotlib()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup, escape

    def text(value: str, most: int = SHOWN_TEXT) -> Markup:
        shown = value if len(value) <= most else value[: most - 1] + "…"
        shown = shown.replace(" %", "\u00a0%")
        return Markup(f"<bdi>{escape(printable(shown))}</bdi>")

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters |= {
        "pc": percent,
        "text": text,
        "num": number,
        "duration": duration,
        "heat": heat,
        "cos": lambda value: f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−"),
        "main_figure": main_figure,
        "finding": lambda kind: kind.replace("_", " "),
    }
    numbers = _Numbers()
    runs = [(subject.name, subject.run) for subject in report.subjects if subject.run]
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        title=", ".join(subject.name for subject in report.subjects),
        runs=runs,
        run_charts=_as_markup(run_charts(runs, numbers)),
        probe_charts=[_as_markup(probe_charts(cache, numbers)) for cache in report.caches],
        thumbnails=thumbnails,
        everything=EVERYTHING,
        settings=settings_table(report),
        most_in_matrix=MOST_IN_MATRIX,
        most_columns=MOST_COLUMNS,
        shown_classes=shown_classes,
        confusion_rows=confusion_rows,
        most_confused=most_confused,
        main_figure=main_figure,
        enumerate=enumerate,
        colours=charts.NUM_COLOURS,
    )
    return re.sub(r"\n\s*\n+", "\n", page)


class _Numbers:
    """Numbers of the charts of a page, which keep their ids apart."""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> str:
        self._next += 1
        return f"c{self._next}"


def _as_markup(shown: Sequence[ShownChart]) -> list[ShownChart]:
    from markupsafe import Markup

    # Drawn by us from numbers and our own words.
    return [ShownChart(title=c.title, svg=Markup(c.svg), told=c.told, legend=c.legend) for c in shown]


def printable(text: str) -> str:
    """A text whose controls and marks of direction are written out."""
    return _UNSAFE.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _SHORT.get(found[0], f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many digits that count, a dash for none.

    >>> number(0.012345), number(12345.6), number(0), number(None), number(float("nan"))
    ('0.0123', '12,346', '0', '–', '–')
    >>> number(-3.4161), number(2.5, 4)
    ('−3.42', '2.500')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value < 0:
        return f"−{number(-value, digits)}"
    if value == 0 or abs(value) >= 10**digits or value == int(value):
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.{digits - 1}g}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def duration(seconds: float) -> str:
    """Hours, minutes or seconds.

    >>> duration(3.21), duration(75), duration(7322)
    ('3.2 s', '1 min 15 s', '2 h 2 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def heat(value: float, low: float = 0.0, high: float = 1.0) -> int:
    """Shade of a cell in percent, from the lowest value to the highest."""
    if not math.isfinite(value) or high <= low:
        return 0
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))))


# Charts


def run_charts(runs: Sequence[tuple[str, RunFigures]], numbers: _Numbers) -> list[ShownChart]:
    """Charts of one run, or of several in the same axes; those without any value are left out."""
    single = len(runs) == 1
    recalls = (("R@1", "r_at_1"), ("R@5", "r_at_5"), ("R@10", "r_at_10"))
    result: list[ShownChart] = []

    def add(title: str, told: str, lines: list[Line], levels: list[Level], legend: Any = (), **how: Any) -> None:
        if any(y is not None for line in lines for y in line.ys):
            drawn = Chart(x_label="step", lines=lines, levels=levels, stars=[], **how)
            result.append(
                ShownChart(title=title, svg=charts.svg(drawn, numbers.take()), told=told, legend=list(legend))
            )

    chances = {run.chance_loss for _, run in runs if run.chance_loss is not None}
    add(
        "Loss",
        "training loss over the steps",
        [_line(run, "loss", i) for i, (_, run) in enumerate(runs)],
        [Level(y=chance, label=f"chance {chance:.2f}") for chance in sorted(chances)[:1] if len(chances) == 1],
    )
    chances_of_recall = {run.chance_recall for _, run in runs if run.chance_recall is not None}
    for names in [recalls] if single else [[recall] for recall in recalls[::2]]:
        add(
            "Recall, text → image" if single else f"{names[0][0]}, text → image",
            "recall of validations over the steps",
            [
                line
                for i, (_, run) in enumerate(runs)
                for j, (_, name) in enumerate(names)
                for line in _measured(run, name, j if single else i)
            ],
            [
                Level(y=guess, label=f"chance of R@1: {percent(guess)}")
                for guess in sorted(chances_of_recall)[:1]
                if len(chances_of_recall) == 1 and names[0][0] == "R@1"
            ],
            [(label, j) for j, (label, _) in enumerate(names)] if single else [],
            percent=True,
            from_zero=True,
        )
    for title, name, told in (
        ("Alignment", "alignment", "squared distance of caption and image, lower is closer"),
        ("Uniformity", "uniformity", "spread of the captions, lower is more even"),
    ):
        add(
            title,
            told,
            [line for i, (_, run) in enumerate(runs) for line in _measured(run, name, i)],
            [],
        )
    add(
        "Temperature",
        "learned temperature of the softmax",
        temperatures := [_line(run, "temperature", i) for i, (_, run) in enumerate(runs)],
        [],
        log_y=_spans_decades(temperatures),
    )
    add(
        "Pairs per second",
        "captions and images that a step learns from, a second",
        [_line(run, "pairs_per_s", i) for i, (_, run) in enumerate(runs)],
        [],
        from_zero=True,
    )
    return result


def _spans_decades(lines: Sequence[Line]) -> bool:
    values = [y for line in lines for y in line.ys if y]
    return bool(values) and min(values) > 0 and max(values) > DECADES * min(values)


def _line(run: RunFigures, name: str, colour: int, *, dashed: bool = False) -> Line:
    curve = run.curves[name]
    return Line(xs=curve.steps, ys=curve.values, colour=colour, dashed=dashed)


def _measured(run: RunFigures, name: str, colour: int) -> Iterator[Line]:
    """On held-out pairs, and in dashes on the run's own."""
    if run.curves[name].steps:
        yield _line(run, name, colour)
    if run.curves[f"sample_{name}"].steps:
        yield _line(run, f"sample_{name}", colour, dashed=True)


def probe_charts(cache: CacheFigures, numbers: _Numbers) -> list[ShownChart]:
    """Accuracy of linear probes by shots, with a star for each tower's accuracy without any."""
    probe = cache.probe
    if probe is None or not probe.points:
        return []
    few = [point.shots for point in probe.points if point.shots is not None]
    places = [math.log2(point.shots) if point.shots else math.log2(max(few, default=1)) + 1.5 for point in probe.points]
    labels = [str(point.shots) if point.shots else "all" for point in probe.points]
    zero = min(places) - 1.2
    towers = [(i, t.name, t.zero_shot_of_test) for i, t in enumerate(cache.towers) if t.zero_shot_of_test is not None]
    chart = Chart(
        x_label="training images a class",
        lines=[
            Line(
                xs=places,
                ys=[point.accuracy for point in probe.points],
                colour=0,
                band=([point.low for point in probe.points], [point.high for point in probe.points]),
            )
        ],
        levels=[Level(y=probe.chance, label="chance")],
        stars=[Star(x=zero, y=accuracy, colour=i + 1) for i, _, accuracy in towers],
        percent=True,
        ticks=[*([(zero, "0")] if towers else []), *zip(places, labels, strict=True)],
        from_zero=True,
    )
    legend = [("linear probe", 0), *((f"★ {name}, zero-shot", i + 1) for i, name, _ in towers)]
    told = "accuracy of a linear probe by the number of training images a class"
    return [ShownChart(title="Few-shot accuracy", svg=charts.svg(chart, numbers.take()), told=told, legend=legend)]


# Tables


def settings_table(report: Report) -> list[tuple[str, list[str], bool]]:
    """Name of each setting, its value in each run, and whether they differ; of a single run, from the defaults."""
    runs = [subject.settings for subject in report.subjects if subject.run]
    defaults = {field.name: _setting(field.default) for field in fields(TrainSettings)}
    names = list(dict.fromkeys(name for settings in runs for name in settings))
    rows = []
    for name in names:
        values = [_setting(settings.get(name)) for settings in runs]
        differs = len(set(values)) > 1 if len(runs) > 1 else values[0] != defaults.get(name)
        rows.append((name, values, differs))
    return sorted(rows, key=lambda row: not row[2]) if len(runs) > 1 else rows


def _setting(value: Any) -> str:
    if value is None or value in ([], ()):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown_classes(score: ClassificationReport) -> tuple[list[Any], int]:
    """Results of classes with images, those recognised least first, and how many between are left out."""
    order = sorted((each for each in score.classes if each.num_images), key=lambda each: each.accuracy or 0.0)
    if len(order) <= MOST_CLASSES:
        return order, 0
    half = MOST_CLASSES // 2
    return [*order[:half], *order[-half:]], len(order) - MOST_CLASSES


def confusion_rows(
    score: ClassificationReport,
) -> tuple[list[str], list[tuple[str, list[tuple[int, float, bool]]]]]:
    """Names of the classes that have images or that images were taken for; for each class with images its row.

    Returns:
        The names of the columns; for each row the name of its class, and for each column the images that were taken for
        it, their share of the row, and whether it is the class itself.
    """
    matrix = score.matrix()
    totals = matrix.sum(1)
    columns = np.flatnonzero((totals > 0) | (matrix.sum(0) > 0)).tolist()
    rows = [
        (score.classes[i].name, [(int(matrix[i, j]), float(matrix[i, j] / totals[i]), i == j) for j in columns])
        for i in columns
        if totals[i]
    ]
    return [score.classes[j].name for j in columns], rows


def most_confused(score: ClassificationReport) -> list[tuple[str, str, int, float]]:
    """Class, class that its images were taken for, how many, and their share of the class."""
    by_label = {each.label: each for each in score.classes}
    return [
        (
            by_label[cell.label].name,
            by_label[cell.predicted].name,
            cell.num_images,
            cell.num_images / by_label[cell.label].num_images,
        )
        for cell in score.most_confused(MOST_CONFUSED)
    ]
