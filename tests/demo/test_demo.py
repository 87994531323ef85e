"""Demo at a small size: every stage runs and the report is consistent. Results at full size are in benchmarks/."""

import json
from io import StringIO
from pathlib import Path

import click
import open_clip
import pytest
from click.testing import CliRunner
from clipglot.cli import demo as cli
from clipglot.cli.main import main
from clipglot.cli.render import SafeConsole
from clipglot.demo.run import ENGLISH_CLIP, DemoReport, Score
from support.report_pages import Page


@pytest.mark.slow
@pytest.mark.parametrize("language", ["ru", "zh"])
def test_the_demo_runs_all_stages(tmp_path: Path, language: str) -> None:
    small = ["--pictures", "600", "--epochs", "6", "--language", language, "-o", str(tmp_path / "demo")]
    result = CliRunner().invoke(main, ["demo", *small, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    english, foreign, new = report["scores"]
    assert (english["prompts"], foreign["prompts"], new["prompts"]) == ("en", language, language)
    assert english["accuracy"] > 0.8  # the shipped tower knows combinations that it never saw
    assert foreign["accuracy"] < 0.2  # and no other language
    assert new["r_at_10"] > 2 * report["chance"]["r_at_10"]  # six epochs of 600 images are a beginning
    assert report["uncached_s"] == pytest.approx(6 * report["pass_s"] + report["train_s"])
    open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'demo' / 'merged'}")
    page = Page.read(Path(report["report"]))
    assert page.table_with("top-1").rows[1][1] == f"{100 * new['accuracy']:.1f} %"  # among the same 64 classes
    assert page.table_with("top-1").rows[2][1] == f"{100 * english['accuracy']:.1f} %"
    assert len(page.images) > 20


def test_the_demo_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path)])
    assert result.exit_code == 1
    assert "is not empty" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_shipped_clip_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in ENGLISH_CLIP.iterdir()) < 8 * 2**20


def demo_report(folder: Path) -> DemoReport:
    scores = [
        Score(tower=tower, prompts=language, accuracy=accuracy, r_at_1=0.5, r_at_10=0.75)
        for tower, language, accuracy in (("English tower", "en", 0.95), ("new tower", "ru", 0.5))
    ]
    return DemoReport(
        scores=scores,
        chance={"accuracy": 1 / 64, "r_at_1": 0.002, "r_at_10": 0.02},
        stage_s={"draw": 1.0, "train": 2.0},
        num_pictures=600,
        epochs=6,
        pass_s=2.0,
        train_s=2.0,
        folder=folder,
        report=folder / "a report.html",
    )


@pytest.mark.parametrize("kept", [True, False])
def test_the_demo_ends_with_where_to_look(kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli._print(demo_report(tmp_path), kept=kept, serves=False)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "█" not in shown
    assert "14 s instead of 4 s, 3.5 times" in shown
    rows = dict(line.split(": ", 1) for line in shown.splitlines() if ": " in line)
    assert rows["report"] == str(tmp_path / "a report.html")
    serve = f"clipglot serve {tmp_path / 'merged'} {tmp_path / 'train.zarr'}"
    assert rows["search page"] == (serve if kept else "clipglot demo --serve")
    assert ("merged CLIP" in rows) == kept


def test_in_a_terminal_the_demo_draws_a_chart_and_links_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = SafeConsole(file=StringIO(), force_terminal=True, width=200, markup=False, emoji=False, highlight=False)
    monkeypatch.setattr(cli, "output", console)
    monkeypatch.setattr("clipglot.cli.render.output", console)
    cli._print(demo_report(tmp_path), kept=False, serves=False)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f";{(tmp_path / 'a report.html').as_uri()}\x1b\\" in shown
    lines = click.unstyle(shown).splitlines()
    assert [line.count("█") for line in lines[1:4]] == [19, 10, 0]
    assert "▎" in lines[3]  # 1/64 of 20 columns
