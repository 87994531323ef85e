"""Line charts as SVG for a page: small, the same bytes every time, in the page's fonts and colours.

Text of users is never in a chart: names of series stand in a legend of the page, where the browser draws every script.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from ..evals.errors import EvalError

WIDTH, HEIGHT = 4.2, 2.6  # inches of 72 points: a chart is shown at about this size, so its letters keep theirs
MOST_POINTS = 400
NUM_COLOURS = 6
# Stand for colours of the page, which differ in the dark. `#0000xx` is in no style of matplotlib.
_INK, _FAINT, _GRID = "#000001", "#000002", "#000003"
_SERIES = [f"#0000{16 + i:02x}" for i in range(NUM_COLOURS)]
_VARIABLES = {_INK: "--ink", _FAINT: "--muted", _GRID: "--line"} | {
    colour: f"--series-{i}" for i, colour in enumerate(_SERIES)
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "clipglot",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _FAINT,
    "axes.linewidth": 0.8,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _FAINT,
    "ytick.labelcolor": _FAINT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart.

    Attributes:
        xs: places.
        ys: heights; None leaves a gap.
        colour: number of the series.
        dashed: drawn in dashes, e.g. what was measured on a run's own pairs.
        band: lowest and highest value at each place.
    """

    xs: Sequence[float]
    ys: Sequence[float | None]
    colour: int
    dashed: bool = False
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class Level:
    """A horizontal line, e.g. of chance.

    Attributes:
        y: its height.
        label: our words, no text of users.
    """

    y: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Star:
    """A point marked by a star."""

    x: float
    y: float
    colour: int


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart to draw.

    Attributes:
        x_label: below.
        lines: drawn in order.
        levels: drawn below the lines.
        stars: drawn above.
        percent: heights are shares.
        log_x: places have a logarithmic scale.
        log_y: heights have.
        ticks: places with their labels; None for round numbers.
        from_zero: the lowest height is zero.
    """

    x_label: str
    lines: list[Line]
    levels: list[Level]
    stars: list[Star]
    percent: bool = False
    log_y: bool = False
    ticks: list[tuple[float, str]] | None = None
    from_zero: bool = False


def require_matplotlib() -> None:
    """Raise unless a report can be drawn.

    Raises:
        EvalError: matplotlib or Jinja2 is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401

        del jinja2
    except ImportError as error:
        raise EvalError(
            f"a report needs matplotlib and Jinja2 ({error.name} is not installed): "
            "pip install '.[report]' in a clone of clipglot"
        ) from error


def thinned(line: Line, most: int = MOST_POINTS) -> Line:
    """A line of at most so many points: of each stretch the lowest and the highest, so that peaks stay.

    >>> line = Line(xs=range(1000), ys=[0.0] * 500 + [9.0] + [0.0] * 499, colour=0)
    >>> short = thinned(line, 100)
    >>> len(short.xs) <= 100, max(short.ys)
    (True, 9.0)
    """
    num = len(line.xs)
    if num <= most:
        return line
    stretches = most // 2 - 1
    kept = {0, num - 1}
    for i in range(stretches):
        stretch = range(i * num // stretches, (i + 1) * num // stretches)
        values = [(y, j) for j in stretch if (y := line.ys[j]) is not None]
        if len(values) < len(stretch):
            kept.add(next(j for j in stretch if line.ys[j] is None))  # the gap stays
        if values:
            kept |= {min(values)[1]} if len(values) < len(stretch) else {min(values)[1], max(values)[1]}
    order = sorted(kept)[:most]
    return Line(xs=[line.xs[j] for j in order], ys=[line.ys[j] for j in order], colour=line.colour, dashed=line.dashed)


def svg(chart: Chart, prefix: str) -> str:
    """SVG element of a chart.

    Args:
        chart: with at least one value.
        prefix: of all ids, different for each chart of a page.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, chart)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None})
    return _inlined(text.getvalue(), prefix)


def _draw(axes: Any, chart: Chart) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

    for level in chart.levels:
        axes.axhline(level.y, color=_FAINT, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
    for line in map(thinned, chart.lines):
        ys = [math.nan if y is None else y for y in line.ys]
        colour = _SERIES[line.colour % NUM_COLOURS]
        finite = [y for y in ys if math.isfinite(y)]
        marker = "o" if len(finite) <= 24 else None
        if line.band:
            axes.fill_between(line.xs, *line.band, color=colour, alpha=0.15, linewidth=0)
        style: Any = (0, (4, 2)) if line.dashed else "-"
        axes.plot(line.xs, ys, color=colour, linestyle=style, marker=marker, markersize=3, zorder=3)
    for star in chart.stars:
        axes.plot([star.x], [star.y], marker="*", markersize=11, color=_SERIES[star.colour % NUM_COLOURS], zorder=4)
    axes.set_xlabel(chart.x_label)
    axes.grid(visible=True, axis="y", color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    if chart.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, place: f"{y:g}"))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if max(map(abs, axes.get_ylim())) >= 1000:
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, place: f"{y:,.0f}"))
    if chart.percent:
        top = axes.get_ylim()[1]
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if top > 0.06 else 1, symbol=" %"))
    if chart.from_zero and not chart.log_y:
        axes.set_ylim(bottom=0)
    if chart.ticks is None:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, place: f"{x:,.0f}"))
    else:
        axes.set_xticks([x for x, _ in chart.ticks], [label for _, label in chart.ticks])
    for level in chart.levels:
        axes.annotate(
            level.label,
            (1, level.y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=_FAINT,
            fontsize=8,
        )


def _inlined(document: str, prefix: str) -> str:
    """The SVG element of a document: its own ids, the page's fonts and colours, no metadata and no addresses."""
    element = document[document.index("<svg") :]
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)  # it would hold for the whole page
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', element, count=1)
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r'xlink:href="#', f'href="#{prefix}-', element)
    element = re.sub(r"url\(#", f"url(#{prefix}-", element)
    element = re.sub(r'font: ([\d.]+)px [^;"]*', r"font-size: \1px", element)
    element = re.sub(r"font-family: [^;\"]*;? ?", "", element)
    for colour, variable in _VARIABLES.items():
        element = element.replace(colour, f"var({variable})")
    element = re.sub(r"<!--.*?-->", "", element, flags=re.DOTALL)
    # Hundredths of a point; not in the text of ticks.
    element = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), element)
    return re.sub(r"\s*\n\s*", "\n", element).strip()
