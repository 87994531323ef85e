"""Pages of figures, without any measurement: hostile texts, many subjects, figures that are not finite."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clipglot.evals.bootstrap import Difference
from clipglot.evals.retrieval import Ranks, RetrievalReport
from clipglot.reports.charts import Chart, Level, Line, svg, thinned
from clipglot.reports.figures import (
    EVERYTHING,
    CacheFigures,
    Curve,
    Finding,
    Report,
    RunFigures,
    Subject,
    TowerFigures,
)
from clipglot.reports.page import write_page
from clipglot.reports.verdict import report_verdict, run_verdict, subject_verdict
from support.report_pages import Page

NOTHING = Curve(steps=[], values=[])
NAMES = ("loss", "temperature", "pairs_per_s", "r_at_1", "r_at_5", "r_at_10", "alignment", "uniformity")


def run_of(**values: Any) -> RunFigures:
    """A run whose curves are empty but for those given."""
    given = values.pop("curves", {})
    curves = {name: NOTHING for base in NAMES for name in (base, f"sample_{base}")} | given
    plain: dict[str, Any] = {
        "step": max((curve.steps[-1] for curve in curves.values() if curve.steps), default=0),
        "num_steps": 100,
        "is_finished": False,
        "diverged_at": None,
        "chance_loss": math.log(8),
        "chance_recall": 0.01,
        "best_step": None,
        "train_s": 0.0,
        "pairs_per_s": None,
        "wait": None,
        "findings": [],
    }
    return RunFigures(curves=curves, **plain | values)


def report_of(*subjects: Subject, caches: tuple[CacheFigures, ...] = ()) -> Report:
    verdict = report_verdict(subjects, caches)
    return Report(verdict=verdict, subjects=list(subjects), caches=list(caches), notes=[], version="0")


def subject_of(name: str, run: RunFigures | None = None, **values: Any) -> Subject:
    verdict = subject_verdict(name, run, ())
    return Subject(
        name=name, path=f"/x/{name}", kind="run" if run else "merged CLIP", verdict=verdict, run=run, **values
    )


def curve(*values: float | None) -> Curve:
    return Curve(steps=[10 * i for i in range(1, len(values) + 1)], values=list(values))


def retrieval(recall: float) -> RetrievalReport:
    ranks = Ranks(r_at_1=recall, r_at_5=recall, r_at_10=recall, median_rank=2.0, num_queries=50, num_candidates=50)
    return RetrievalReport(text_to_image=ranks, image_to_text=ranks)


def cache_of(*recalls: float, low: float = 0.1, high: float = 0.3) -> CacheFigures:
    """A cache measured with towers of these recalls; the differences of all but the first have this interval."""
    spread = dict.fromkeys(("alignment", "uniformity", "anisotropy", "effective_rank"), 1.0)
    towers = [
        TowerFigures(name=f"t{i}", retrieval={EVERYTHING: retrieval(r)}, spread=spread) for i, r in enumerate(recalls)
    ]
    difference = Difference(metric="R@1", ours=0.5, theirs=0.3, low=low, high=high, num_images=50, num_differing=20)
    towers = [replace(t, differences=[difference] if i else []) for i, t in enumerate(towers)]
    chance = {"r_at_1": 0.02, "r_at_10": 0.2}
    return CacheFigures(
        name="c", path="c", num_images=50, num_captions=50, chance=chance, facts={}, languages={}, towers=towers
    )


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (run_of(), "no step yet"),
        (run_of(curves={"loss": curve(2.5, 2.25)}), "no validation (--val): its loss is 2.25 at step 20 of 100"),
        (run_of(curves={"loss": curve(2.5, None)}, diverged_at=20), "diverged at step 20"),
        (run_of(curves={"r_at_1": curve(0.1, 0.3, 0.2)}, best_step=20, step=30), "30.0 % of them (best validation"),
        (
            run_of(
                curves={"r_at_1": curve(0.01)},
                best_step=10,
                findings=[Finding(step=10, kind="recall_at_chance", message="m", advice="a")],
            ),
            "no better than chance",
        ),
    ],
)  # fmt: skip
def test_a_run_gets_its_verdict_and_a_page(run: RunFigures, said: str) -> None:
    assert said in run_verdict(run)
    page = Page(write_page(report_of(subject_of("r", run, settings={"lr": 0.001})), []))
    assert said in page.text


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        (cache_of(0.3, 0.5), "t1 finds the most images of c: 50.0 %, t0 30.0 %; the difference is significant."),
        (
            cache_of(0.3, 0.5, low=-0.1),
            "t1 finds the most images of c: 50.0 %, t0 30.0 %; the two cannot be told apart.",
        ),
        (cache_of(0.5, 0.5, low=-0.1), "t0 and t1 do equally well on c: 50.0 %."),
        (
            cache_of(0.5, 0.3, low=-0.3, high=-0.1),
            "t0 finds the most images of c: 50.0 %, ahead of t1 with 30.0 %; the two cannot be told apart.",
        ),
    ],
)
def test_the_best_of_several_is_named(cache: CacheFigures, said: str) -> None:
    if "ahead of" in said:  # the difference is that of the interval, whatever the recalls are
        worse = Difference(metric="R@1", ours=0.3, theirs=0.5, low=-0.3, high=-0.1, num_images=50, num_differing=20)
        cache = replace(cache, towers=[cache.towers[0], replace(cache.towers[1], differences=[worse])])
        said = said.replace("the two cannot be told apart", "the difference is significant")
    report = report_of(subject_of("t0"), subject_of("t1"), caches=(cache,))
    assert report.verdict == said
    assert said in Page(write_page(report, [{}])).text


def test_names_paths_settings_and_findings_are_text() -> None:
    bad = '"><script>alert(1)</script><b onclick="x">\x00\u202e{{ 1 }}'
    run = run_of(curves={"loss": curve(1.0)}, findings=[Finding(step=1, kind="collapsed", message=bad, advice=bad)])
    subject = subject_of(bad, run, facts={"source": bad, bad: "x"}, settings={"lr": bad})
    html = write_page(replace(report_of(subject), notes=[bad]), [])
    page = Page(html)
    assert "script" not in page.tags
    assert page.text.count("<script>alert(1)</script>") >= 6
    assert "\x00" not in html
    assert "\u202e" not in html
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_a_thousand_curves_points_and_ten_runs_stay_small() -> None:
    runs = [
        subject_of(f"r{i}", run_of(curves={"loss": curve(*[math.sin(j / 50 + i) + 2 for j in range(20_000)])}))
        for i in range(10)
    ]
    html = write_page(report_of(*runs), [])
    assert len(html) < 400_000
    assert len(set(Page(html).ids)) == len(Page(html).ids)


def test_a_thinned_line_keeps_gaps_and_peaks() -> None:
    ys: list[float | None] = [1.0] * 5000
    ys[2345], ys[4000] = 7.0, None
    short = thinned(Line(xs=range(5000), ys=ys, colour=0))
    assert len(short.xs) <= 400
    assert 7.0 in short.ys
    assert None in short.ys
    assert list(short.xs) == sorted(short.xs)


def test_a_chart_is_the_same_each_time_and_has_the_pages_colours() -> None:
    chart = Chart(
        x_label="step",
        lines=[Line(xs=[1, 2, 3], ys=[1.0, None, 2.0], colour=i) for i in range(7)],
        levels=[Level(y=1.5, label="chance")],
        stars=[],
    )
    drawn = svg(chart, "a")
    assert drawn == svg(chart, "a")
    assert "var(--series-5)" in drawn
    assert "#0000" not in drawn.replace("#a-", "")
    assert "http" not in drawn
    assert "font-family" not in drawn
    assert ">chance</text>" in drawn


def test_a_chart_of_a_single_value_and_of_large_numbers() -> None:
    for ys in ([5.0], [1e9, 2e9], [0.0, 0.0], [-1e-9, 1e-9]):
        lines = [Line(xs=list(range(len(ys))), ys=ys, colour=0)]
        assert "<svg" in svg(Chart(x_label="step", lines=lines, levels=[], stars=[], percent=True), "x")


def test_json_has_no_nan() -> None:
    run = run_of(train_s=math.nan, pairs_per_s=math.inf)
    plain = report_of(subject_of("r", run)).to_json()["subjects"][0]["run"]
    assert (plain["train_s"], plain["pairs_per_s"]) == (None, None)


def test_the_template_is_beside_the_module() -> None:
    import clipglot.reports.page as module

    assert module.TEMPLATE.parent == Path(module.__file__).parent
