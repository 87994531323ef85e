"""What `clipglot train` shows while it runs: in a terminal, in a pipe, and after a resume."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from clipglot.cli.render import sparkline
from clipglot.distill.training.train import train
from support.caption_tables import english
from support.command_line import run, small
from support.launcher import Process
from support.runs import settings, stop_at
from support.terminal import run_on_terminal

ROW = re.compile(r" +(\d+)/(\d+) +(\d+\.\d{3}) +(\d+)% +([\d.]+)% +([\d.]+)% +([\d.]+)% +([\d.,]+) +[\d,]+( +best)?")


def in_a_terminal(start_command: Callable[..., Process], *arguments: object, plain: bool = True) -> list[str]:
    """Lines that a command draws in a terminal of 80 columns, those of its bar too."""
    shown = run_on_terminal(start_command, *arguments, answers={}, environment={"COLUMNS": "80"})
    assert shown.code == 0, shown.written
    text = shown.written.replace("\r\n", "\n").replace("\r", "\n")
    return (click.unstyle(text) if plain else text).splitlines()


def validations(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "validation"]


def test_a_pipe_gets_the_outline_and_a_line_an_epoch(tiny_cache: Path, tmp_path: Path) -> None:
    result = run(*small(tiny_cache, tmp_path / "run"), "--epochs", 2, "--log-every", 1, "--val", tiny_cache)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stderr
    assert "\r" not in result.stderr
    names = ["text tower", "image tower", "images", "recall", "steps", "chance loss", "device"]
    begun, *rest = result.stderr.split("epoch 1 of 2: ")
    outline = dict(line.split(": ", 1) for line in begun.splitlines() if line.partition(": ")[0] in names)
    assert list(outline) == names
    assert (outline["images"].split()[0], outline["device"]) == ("40", "cpu, fp32")
    assert "10 of 8 images" in outline["steps"]
    assert float(outline["chance loss"].split(",")[0]) == pytest.approx(math.log(8), rel=0.1)
    epochs = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    assert rest
    for line, validation in zip(epochs, validations(tmp_path / "run"), strict=True):
        for k in (1, 5, 10):
            assert f"R@{k} {validation[f'r_at_{k}']:.1%}," in line
        assert f"median rank {validation['median_rank']:g}," in line
        assert re.search(r"loss \d\.\d{3} \(\d+% of chance\)", line)
    assert "best so far" in epochs[0]
    # Ten steps take no minute: no line beside those of epochs.
    assert not [line for line in result.stderr.splitlines() if line.startswith("step ")]
    assert run(*small(tiny_cache, tmp_path / "json"), "--epochs", 1, "--json").stderr == ""


def test_a_terminal_gets_a_table_above_the_bar_and_a_curve(
    start_command: Callable[..., Process], tiny_cache: Path, tmp_path: Path
) -> None:
    words = small(tiny_cache, tmp_path / "run")
    shown = in_a_terminal(start_command, *words, "--epochs", 3, "--log-every", 1, "--val", tiny_cache)
    assert max(map(len, shown)) <= 80
    (headings,) = [i for i, line in enumerate(shown) if line.split()[:2] == ["epoch", "loss"]]
    rows = [match for line in shown[headings:] if (match := ROW.fullmatch(line))]
    assert [(row[1], row[2]) for row in rows] == [("1", "3"), ("2", "3"), ("3", "3")]
    for row, validation in zip(rows, validations(tmp_path / "run"), strict=True):
        assert row[5] == f"{100 * validation['r_at_1']:.1f}"
        assert row[7] == f"{100 * validation['r_at_10']:.1f}"
    assert rows[0][9]  # the first is the best so far
    assert any(line.startswith("text tower") for line in shown[:headings])
    assert any(line.startswith("loss ") and set("▁▂▃▄▅▆▇█") & set(line) for line in shown)


def test_a_resumed_run_shows_where_it_goes_on(
    start_command: Callable[..., Process], tiny_cache: Path, tmp_path: Path
) -> None:
    begun = settings(tiny_cache, tmp_path / "run", val=tiny_cache)
    train(begun, on_progress=stop_at(12))
    shown = in_a_terminal(start_command, "train", tiny_cache, "-o", tmp_path / "run", "--resume")
    rows = [i for i, line in enumerate(shown) if re.match(r" +\d/4 ", line)]
    (resumed,) = [i for i, line in enumerate(shown) if line.strip() == "resumed at step 12"]
    assert [i < resumed for i in rows] == [True, True, False, False]
    assert any("12/20" in line for line in shown)  # the bar begins there
    assert not any(re.search(r" [0-9]/20", line) for line in shown)
    train(begun := settings(tiny_cache, tmp_path / "other", val=tiny_cache), on_progress=stop_at(12))
    piped = run("train", tiny_cache, "-o", tmp_path / "other", "--resume").stderr
    assert re.search(r"^steps: 20 .*resumed at 12$", piped, re.MULTILINE)


def test_findings_name_the_setting_in_colour(
    start_command: Callable[..., Process], tiny_cache: Path, tmp_path: Path
) -> None:
    words = [*small(tiny_cache, tmp_path / "run"), "--context-length", 4, "--epochs", 1]
    coloured = "\n".join(in_a_terminal(start_command, *words, plain=False))
    assert re.search(r"\x1b\[1;36m--context-length\x1b\[0m", coloured)
    words[3] = tmp_path / "plain"
    (finding,) = [line for line in run(*words).stderr.splitlines() if line.startswith("cut captions: ")]
    assert "--context-length" in finding
    assert "docs/diagnosis.md" in finding


def test_a_flat_curve_looks_flat() -> None:
    assert sparkline([5.5, 5.6, 5.5, 5.6], 4) == "████"
    falling = sparkline([float(value) for value in range(1000, 0, -1)], 40)
    assert len(falling) == 40
    assert list(falling) == sorted(falling, reverse=True)
    assert sparkline([1.0, 0.0, 0.5], 10) == "█▁▄"


def test_a_terminal_gets_a_row_for_each_language(
    start_command: Callable[..., Process], tiny_cache: Path, tmp_path: Path
) -> None:
    cache = shutil.copytree(tiny_cache, tmp_path / "c.zarr", ignore=shutil.ignore_patterns("tokens"))
    added = run("captions", cache, english(tmp_path / "en.csv", range(40)), "--language", "en-Latn-GB")
    assert added.exit_code == 0, added.output
    chosen = ["--captions", "source", "--captions", "en-Latn-GB", "--language", "source", "--language", "en-Latn-GB=2"]
    shown = in_a_terminal(
        start_command, *small(cache, tmp_path / "run"), *chosen, "--epochs", 2, "--recipe", "none", "--val", cache
    )
    assert max(map(len, shown)) <= 80
    assert "en-Latn-GB with weight 1 (80), source with weight 0.5 (79)" in " ".join(" ".join(shown).split())
    rows = [row for line in shown if (row := re.fullmatch(r" +(en-La\S*|source) +([\d.]+)% .* ([\d.,]+) *", line))]
    expected = [
        (name, f"{100 * of['r_at_1']:.1f}", f"{of['median_rank']:,g}")
        for validation in validations(tmp_path / "run")
        for name, of in validation["languages"].items()
    ]
    assert [(row[2], row[3]) for row in rows] == [told[1:] for told in expected]
    assert [row[1][:5] for row in rows] == [told[0][:5] for told in expected] == ["en-La", "sourc"] * 2
