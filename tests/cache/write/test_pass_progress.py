"""Progress of `clipglot cache`: with and without a terminal."""

import os
import pty
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from clipglot.cache.read.cache import Cache
from clipglot.cli.main import main
from clipglot.cli.render import PlainProgress
from support.terminal import run_on_terminal
from support.worker_scripts import SLOW


def run_pass(manifest: Path, tiny_clip: Path, output: Path, *more: str) -> Result:
    options = ["--model", f"local-dir:{tiny_clip}", "--device", "cpu", "--batch-size", "8", "--num-workers", "1"]
    return CliRunner().invoke(main, ["cache", str(manifest), "-o", str(output), *options, *more])


def test_without_a_terminal_each_stage_is_a_line(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    result = run_pass(manifest, tiny_clip, tmp_path / "c.zarr")
    assert result.exit_code == 0, result.output
    num_captions = Cache(tmp_path / "c.zarr").info.num_captions
    assert result.stderr.splitlines() == [
        f"load: local-dir:{tiny_clip}",
        "plan: 40 records",
        f"planned 40 images, {num_captions} captions",
        "embed: 0 of 40 images",
    ]
    again = run_pass(manifest, tiny_clip, tmp_path / "c.zarr")
    assert again.stderr == f"load: local-dir:{tiny_clip}\n"
    assert run_pass(manifest, tiny_clip, tmp_path / "json.zarr", "--json").stderr == ""


def test_without_a_terminal_a_line_a_minute_shows_the_speed_and_the_bottleneck(
    manifest: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainProgress.__init__, "__defaults__", (0.0,))
    lines = run_pass(manifest, tiny_clip, tmp_path / "c.zarr").stderr.splitlines()
    progress = [line for line in lines if line.startswith("embed: ")][1:]
    pattern = r"embed: (\d+) of 40 images, [\d,]+/s, \d:\d\d:\d\d left, waits for (reading|decoding|the tower|writing)"
    assert [re.fullmatch(pattern, line)[1] for line in progress] == ["8", "16", "24", "32", "40"]  # type: ignore[index]


def test_an_append_shows_the_number_of_new_images(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    lines = manifest.read_text().splitlines(keepends=True)
    (tmp_path / "old.jsonl").write_text("".join(lines[:25]))
    root = ("--image-root", str(manifest.parent))
    assert run_pass(tmp_path / "old.jsonl", tiny_clip, tmp_path / "c.zarr", *root).exit_code == 0
    for num_new, embed in ((15, ["embed: 0 of 15 images"]), (0, [])):
        (tmp_path / "new.jsonl").write_text("".join(lines if num_new else lines[:-1]))
        appended = run_pass(tmp_path / "new.jsonl", tiny_clip, tmp_path / "c.zarr", *root, "--append")
        records = 40 if num_new else 39
        assert appended.stderr.splitlines()[1:] == [
            f"plan: {records} records",
            f"planned {num_new} further images",
            *embed,
        ]


def test_control_c_in_a_terminal_leaves_one_clean_line_below_the_bars(
    manifest: Path, tiny_clip: Path, start_command: Any, tmp_path: Path
) -> None:
    command = ["cache", manifest, "-o", tmp_path / "c.zarr", "--model", f"local-dir:{tiny_clip}"]
    command += ["--batch-size", 8, "--num-workers", 1, "--device", "cpu"]
    ours, theirs = pty.openpty()
    environment, shown = {"COLUMNS": "100", "TERM": "xterm"}, b""
    process = start_command(*command, script=SLOW.format(0.5), terminal=os.ttyname(theirs), environment=environment)
    os.close(theirs)
    under_way = re.compile(rb"(8|16|24)/40")  # a loaded machine may draw only some of them
    with suppress(OSError):  # Linux raises it when the other side is closed
        while block := os.read(ours, 65536):
            if under_way.search(shown + block) and not under_way.search(shown):
                process.signal_all(signal.SIGINT)
            shown += block
    os.close(ours)
    assert process.wait() == 130
    bars, _, line = shown.decode().rpartition("stopped: ")
    assert "plan" in click.unstyle(bars)
    assert " 0/40" in click.unstyle(bars)
    assert re.search(r"\n(\x1b\[[?\w]*)*$", bars)  # at the beginning of a line
    kept = r"\d+ of 40 images are embedded and kept; run the same command again to resume"
    assert re.fullmatch(kept + r"(\x1b\[0m)?\s*", line)  # nothing is drawn over it


def test_a_terminal_shows_the_speed_and_failures_below_a_bar_that_begins_where_the_pass_goes_on(
    manifest: Path, tiny_clip: Path, start_command: Any, tmp_path: Path
) -> None:
    (manifest_copy := tmp_path / "pairs.jsonl").write_bytes(manifest.read_bytes())
    command = ["cache", manifest_copy, "-o", tmp_path / "c.zarr", "--model", f"local-dir:{tiny_clip}"]
    command += ["--batch-size", 8, "--num-workers", 1, "--device", "cpu", "--image-root", tmp_path]
    (tmp_path / "images").mkdir()
    for i, image in enumerate(sorted((manifest.parent / "images").iterdir())):
        (tmp_path / "images" / image.name).write_bytes(image.read_bytes() if i not in (1, 30) else b"no image")
    begun = start_command(*command, "--chunk-rows", 8, script=SLOW.format(0.2))
    begun.until(lambda: any((tmp_path / "c.zarr").rglob("status/c/*")))
    begun.signal_all(signal.SIGINT)
    assert begun.wait() == 130
    num_kept = int(re.search(r"(\d+) of 40 images are embedded", begun.err())[1])  # type: ignore[index]
    resumed = run_on_terminal(start_command, *command, answers={}, script=SLOW.format(0.2))
    assert resumed.code == 0, resumed.written
    bars = click.unstyle(resumed.written)
    counts = [int(count) for count in re.findall(r"embed \S+ +(\d+)/40", bars)]
    assert counts[-1] == 40
    assert num_kept <= min(counts)
    assert min(counts) > 0
    assert re.search(r"100% \S+ [\d,]+ images/s", bars)
    assert re.search(r"waits for (reading|decoding|the tower|writing); failed: \d not a picture", bars)
