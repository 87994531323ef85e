"""What `clipglot cache` says of itself: without a terminal, and while it waits for others."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from clipglot.cache.read.cache import Cache
from clipglot.cache.storage.open import store_at
from clipglot.cache.write import work_sharing as module
from clipglot.cache.write.work_sharing import ALONE, Heartbeat, Worker, read_signs, sharing
from clipglot.cli.main import main
from clipglot.cli.render import PlainProgress
from support.worker_processes import SLOW


def cached(manifest: Path, tiny_clip: Path, output: Path, *more: str) -> Result:
    given = ["--model", f"local-dir:{tiny_clip}", "--device", "cpu", "--batch-size", "8", "--num-workers", "1"]
    return CliRunner().invoke(main, ["cache", str(manifest), "-o", str(output), *given, *more])


def test_where_there_is_no_terminal_a_pass_says_how_far_it_is(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    result = cached(manifest, tiny_clip, tmp_path / "c.zarr")
    assert result.exit_code == 0, result.output
    num_captions = Cache(tmp_path / "c.zarr").info.num_captions
    assert result.stderr.splitlines() == [
        f"load: local-dir:{tiny_clip}",
        "plan: 40 records",
        f"planned 40 images, {num_captions} captions",
        "embed: 0 of 40 images",
    ]
    again = cached(manifest, tiny_clip, tmp_path / "c.zarr")
    assert again.stderr == f"load: local-dir:{tiny_clip}\n"
    assert cached(manifest, tiny_clip, tmp_path / "json.zarr", "--json").stderr == ""


def test_a_minute_later_a_pass_says_how_fast_it_is_and_what_it_waits_for(
    manifest: Path, tiny_clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainProgress.__init__, "__defaults__", (0.0,))
    said = cached(manifest, tiny_clip, tmp_path / "c.zarr").stderr.splitlines()
    each = [line for line in said if line.startswith("embed: ")][1:]
    pattern = r"embed: (\d+) of 40 images, [\d,]+/s, waits for (reading|decoding|the tower|writing)"
    assert [re.fullmatch(pattern, line)[1] for line in each] == ["8", "16", "24", "32", "40"]  # type: ignore[index]


def test_appending_says_what_is_new(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    lines = manifest.read_text().splitlines(keepends=True)
    (tmp_path / "old.jsonl").write_text("".join(lines[:25]))
    root = ("--image-root", str(manifest.parent))
    assert cached(tmp_path / "old.jsonl", tiny_clip, tmp_path / "c.zarr", *root).exit_code == 0
    for number, more in ((15, ["embed: 0 of 15 images"]), (0, [])):
        (tmp_path / "new.jsonl").write_text("".join(lines[:-1] if not number else lines))
        appended = cached(tmp_path / "new.jsonl", tiny_clip, tmp_path / "c.zarr", *root, "--append")
        records = 40 if number else 39
        assert appended.stderr.splitlines()[1:] == [
            f"plan: {records} records",
            f"planned {number} further images",
            *more,
        ]


def test_control_c_in_a_terminal_leaves_one_clean_line_below_the_bars(
    manifest: Path, tiny_clip: Path, tmp_path: Path
) -> None:
    given = ["cache", str(manifest), "-o", str(tmp_path / "c.zarr"), "--model", f"local-dir:{tiny_clip}"]
    given += ["--batch-size", "8", "--num-workers", "1", "--device", "cpu"]
    script = f"import time\n{SLOW.format(0.5)}\nfrom clipglot.cli.main import main\nmain({given!r})"
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    command = [sys.executable, "-c", script]
    shown = b""
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment, start_new_session=True) as process:
        os.close(theirs)
        with suppress(OSError):  # so Linux says that the other side was closed
            while block := os.read(ours, 65536):
                if b"16/40" in shown + block and b"16/40" not in shown:
                    os.killpg(process.pid, signal.SIGINT)
                shown += block
    os.close(ours)
    assert process.returncode == 130
    bars, _, line = shown.decode().rpartition("stopped: ")
    assert "plan" in click.unstyle(bars)
    assert " 0/40" in click.unstyle(bars)
    assert re.search(r"\n(\x1b\[[?\w]*)*$", bars)  # at the beginning of a line
    kept = r"\d of 5 chunks are embedded and kept; run the same command again to resume"
    assert re.fullmatch(kept + r"(\x1b\[0m)?\s*", line)  # nothing is drawn over it


def test_waiting_for_others_is_counted_and_said_in_the_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other is at chunk 1 and takes three looks to write it."""
    store, now, left, said = store_at(tmp_path, read_only=False), [100.0], {1: None}, list[str]()
    other = Heartbeat(worker=1, of=2, host="far", pid=7, stage="embed", chunks=[1])
    store.write("workers/1.json", json.dumps(asdict(other)).encode())

    def sleep(seconds: float) -> None:
        now[0] += 5
        share.beat()
        said.append(read_signs(store)["0.json"].bottleneck)
        if len(said) == 3:
            left.clear()

    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "sleep", sleep)
    waited: list[float] = []
    with sharing(store, Worker(0, 2), "embed") as share:
        share.note(8, 1.0, "decoding")
        assert not share.has_more(lambda: left, waited.append)
        share.beat()
        assert read_signs(store)["0.json"].bottleneck == "decoding"
    assert (waited, said) == ([5.0] * 3, ["other workers"] * 3)


def test_a_chunk_that_is_written_is_not_named_in_the_next_sign_nor_taken_again(tmp_path: Path) -> None:
    store = store_at(tmp_path, read_only=False)
    with sharing(store, ALONE, "embed") as share:
        chunks = share.chunks(lambda: {0: None, 1: None})  # asked before chunk 0 was written
        assert next(chunks) == (0, None)
        share.wrote(0)
        assert next(chunks) == (1, None)
        (sign,) = read_signs(store).values()
        assert (sign.chunks, sign.chunks_done) == ([1], 1)
        assert next(chunks, None) is None
