"""Demo at a small size: every stage runs and the report is consistent. Results at full size are in benchmarks/."""

import json
from pathlib import Path

import open_clip
import pytest
from click.testing import CliRunner
from clipglot.cli.main import main
from clipglot.demo.run import ENGLISH_CLIP
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
