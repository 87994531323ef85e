"""Progress of `clipglot cache`: with and without a terminal, and while it waits for other workers."""

import json
import os
import pty
import re
import signal
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from clipglot.cache.read.cache import Cache
from clipglot.cache.storage.open import store_at
from clipglot.cache.write import work_sharing
from clipglot.cache.write.work_sharing import ALONE, Heartbeat, Worker, read_signs, sharing
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


def test_waiting_for_other_workers_is_counted_and_in_the_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other worker has chunk 1, and writes it after three checks."""
    store, now, left = store_at(tmp_path, read_only=False), [100.0], {1: None}
    bottlenecks = list[str]()
    other = Heartbeat(worker=1, of=2, host="far", pid=7, stage="embed", chunks=[1])
    store.write("workers/1.json", json.dumps(asdict(other)).encode())

    def sleep(seconds: float) -> None:
        now[0] += 5
        share.beat()
        bottlenecks.append(read_signs(store)["0.json"].bottleneck)
        if len(bottlenecks) == 3:
            left.clear()

    monkeypatch.setattr(work_sharing, "monotonic", lambda: now[0])
    monkeypatch.setattr(work_sharing, "sleep", sleep)
    waited: list[float] = []
    with sharing(store, Worker(0, 2), "embed") as share:
        share.note(8, 1.0, "decoding")
        assert not share.has_more(lambda: left, waited.append)
        share.beat()
        assert read_signs(store)["0.json"].bottleneck == "decoding"
    assert (waited, bottlenecks) == ([5.0] * 3, ["other workers"] * 3)


def test_a_written_chunk_is_not_in_the_next_heartbeat_and_not_taken_again(tmp_path: Path) -> None:
    store = store_at(tmp_path, read_only=False)
    with sharing(store, ALONE, "embed") as share:
        chunks = share.chunks(lambda: {0: None, 1: None})  # asked before chunk 0 was written
        assert next(chunks) == (0, None)
        share.wrote(0)
        assert next(chunks) == (1, None)
        (sign,) = read_signs(store).values()
        assert (sign.chunks, sign.chunks_done) == ([1], 1)
        assert next(chunks, None) is None


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
