"""What `clipglot cache` says of itself: without a terminal, and while it waits for others."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from clipglot.cache import sharing as module
from clipglot.cache.sharing import Sign, read_signs, sharing
from clipglot.cache.stores import store_at
from clipglot.cache.workers import ALONE, Worker
from clipglot.cli.main import main


def cached(manifest: Path, tiny_clip: Path, output: Path, *more: str) -> Result:
    given = ["--model", f"local-dir:{tiny_clip}", "--device", "cpu", "--batch-size", "8", "--workers", "1"]
    return CliRunner().invoke(main, ["cache", str(manifest), "-o", str(output), *given, *more])


def test_where_there_is_no_terminal_a_pass_says_how_far_it_is(manifest: Path, tiny_clip: Path, tmp_path: Path) -> None:
    result = cached(manifest, tiny_clip, tmp_path / "c.zarr")
    assert result.exit_code == 0, result.output
    planned, embedded = result.stderr.splitlines()
    assert re.fullmatch(r"plan: \d+", planned)
    assert re.fullmatch(r"embed: 8 of 40 pictures, [\d,]+/s, waits for (reading|decoding|the tower|writing)", embedded)
    assert cached(manifest, tiny_clip, tmp_path / "json.zarr", "--json").stderr == ""


def test_waiting_for_others_is_counted_and_said_in_the_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other is at chunk 1 and takes three looks to write it."""
    store, now, left, said = store_at(tmp_path, read_only=False), [100.0], {1: None}, list[str]()
    other = Sign(worker=1, of=2, host="far", pid=7, stage="embed", chunks=[1])
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
