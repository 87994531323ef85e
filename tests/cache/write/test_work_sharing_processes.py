"""Workers that share one pass, as real processes: killed, locked out, watched."""

import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.storage.atomic import lock_folder
from clipglot.cache.storage.open import store_at
from clipglot.cache.write.work_sharing import Heartbeat
from clipglot.cli import inspect_watch
from clipglot.cli.main import main
from clipglot.jobs import pass_state
from rich.console import Console
from support.cache_bytes import delete_chunks, files
from support.metadata_edits import edit
from support.s3_server import Bucket
from support.worker_scripts import IMPATIENT, SLOW

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "kills.py"


def test_workers_share_a_pass_and_all_of_them_wait_for_the_plan(start_worker: Any, alone: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    second = start_worker(cache, "1/2")
    second.until(lambda: "worker 1 of 2 is waiting for worker 0 to plan" in second.err())
    assert not cache.exists()
    first = start_worker(cache, "0/2", SLOW.format(0.3))
    done = [worker.succeed() for worker in (first, second)]
    assert files(cache) == files(alone)
    assert not (cache / "workers").exists()
    nums = [int(line.split(" did ")[1].split()[0]) for line in done]
    assert all(nums)
    assert 80 <= sum(nums) < 2 * 80  # where they meet, a chunk may be made twice


@pytest.mark.slow
def test_torchrun_shares_a_pass_and_speaks_once(
    many_images: Path, tiny_clip: Path, alone: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.zarr"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["-m", "clipglot", "cache", str(many_images), "-o", str(cache), "--model", f"local-dir:{tiny_clip}"]
    command += ["--batch-size", "8", "--chunk-rows", "8", "--device", "cpu", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == {"embedded": 80}
    assert files(cache) == files(alone)


@pytest.mark.slow
def test_the_chunks_of_a_dead_worker_are_taken_over(start_worker: Any, alone: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    dead = start_worker(cache, "0/2", SLOW.format(1000))
    dead.until((cache / "workers" / "0.json").exists)
    dead.signal_all(signal.SIGKILL)
    dead.wait()
    (cache / ".zarr.json.0123.partial").write_bytes(b"half")
    start_worker(cache, "1/2", IMPATIENT).succeed()
    assert files(cache) == files(alone)


@pytest.mark.slow
def test_another_number_of_workers_resumes(start_worker: Any, alone: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(alone, tmp_path / "cache.zarr"))
    delete_chunks(cache, 1, 4, 5, 7, 9)
    for worker in [start_worker(cache, f"{i}/3") for i in range(3)]:
        worker.succeed()
    assert files(cache) == files(alone)


@pytest.mark.slow
def test_a_lone_pass_and_workers_exclude_each_other(
    start_worker: Any, many_images: Path, make_cache: Callable[..., Any], alone: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(alone, tmp_path / "cache.zarr"))
    with lock_folder(cache, shared=True), pytest.raises(CacheError, match="another clipglot command is writing it"):
        make_cache(many_images, cache, chunk_rows=8)
    with lock_folder(cache):
        for index in (0, 1):
            refused = start_worker(cache, f"{index}/2")
            assert refused.wait() == 1
            assert "another clipglot command is writing it" in refused.err()
    with lock_folder(cache, shared=True):
        start_worker(cache, "0/2").succeed()


def test_the_last_that_leaves_a_shared_folder_sweeps_it(tmp_path: Path) -> None:
    partial = tmp_path / ".0.0123.partial"
    partial.touch()
    with lock_folder(tmp_path, shared=True):
        with lock_folder(tmp_path, shared=True):
            pass
        assert partial.exists()
    assert not partial.exists()


def run_benchmark(kills: int, at: object, *more: str) -> list[str]:
    """Kill workers at random moments; returns the last line of the table that the benchmark prints."""
    command = [sys.executable, str(BENCHMARK), "--kills", str(kills), "--at", str(at), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return [cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|")]


@pytest.mark.slow
def test_two_workers_killed_at_random_moments_give_the_same_files(tmp_path: Path) -> None:
    _, chunks, kills, _, num_files, different, faults = run_benchmark(6, tmp_path / "killed.zarr", "--pictures", "400")
    assert (chunks, kills, different, faults) == ("50", "6", "0", "0")
    assert int(num_files) == len(files(tmp_path / "killed.zarr")) > 150


@pytest.mark.slow
def test_two_workers_killed_while_they_write_to_a_store_give_the_same_objects(bucket: Bucket) -> None:
    more = ("--pictures", "320", "--between", "1", "--slowed", "0.3")
    _, chunks, kills, _, num_files, different, faults = run_benchmark(5, "s3://bucket/killed.zarr", *more)
    assert (chunks, kills, different, faults) == ("40", "5", "0", "0")
    assert int(num_files) == len(bucket.contents("killed.zarr")) > 120


@pytest.fixture
def unfinished(alone: Path, tmp_path: Path) -> Path:
    """A pass on which worker 1 of 3 is working."""
    cache = Path(shutil.copytree(alone, tmp_path / "cache.zarr"))
    edit(cache, state="planned")
    (cache / "images/status/c/7").unlink()
    write_heartbeat(cache, 1)
    return cache


def write_heartbeat(cache: Path, counter: int) -> None:
    fields = {"chunks": [7], "chunks_done": 12, "pictures_per_s": 1234.5, "bottleneck": "decoding", "counter": counter}
    heartbeat = asdict(Heartbeat(worker=1, of=3, host="node7", pid=99, stage="embed")) | fields
    store_at(cache, read_only=False).write("workers/1.json", json.dumps(heartbeat).encode())


def test_inspect_shows_the_heartbeats_and_that_one_look_cannot_tell_whether_workers_live(unfinished: Path) -> None:
    shown = CliRunner().invoke(main, ["inspect", str(unfinished)]).stdout
    for part in ("9 of 10 chunks", "1 of 3", "node7 (99)", "embed 7", "1,234", "decoding", "not watched yet"):
        assert part in shown
    assert "pass --watch" in shown
    document = json.loads(CliRunner().invoke(main, ["inspect", str(unfinished), "--json"]).stdout)
    assert (document["chunks_done"], document["num_chunks"]) == (9, 10)
    (worker,) = document["workers"]
    assert (worker["host"], worker["chunks_done"], worker["seen_alive"], worker["silent_s"]) == ("node7", 12, False, 0)
    (unfinished / "workers/1.json").unlink()
    assert "no worker is active" in CliRunner().invoke(main, ["inspect", str(unfinished)]).stdout


def test_watching_tells_active_workers_from_silent_ones_until_the_pass_is_over(
    unfinished: Path, alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, shown = [100.0], io.StringIO()

    def sleep(seconds: float) -> None:
        now[0] += 30
        if now[0] == 130:
            write_heartbeat(unfinished, 2)
        if now[0] == 220:
            shutil.rmtree(unfinished)
            shutil.copytree(alone, unfinished)

    monkeypatch.setattr(pass_state, "monotonic", lambda: now[0])
    monkeypatch.setattr(pass_state, "sleep", sleep)
    monkeypatch.setattr(inspect_watch, "output", Console(file=shown, width=200, force_terminal=True))
    result = CliRunner().invoke(main, ["inspect", str(unfinished), "--watch"])
    assert result.exit_code == 0, result.output
    for part in ("not watched yet", "0 s ago", "30 s ago", "60 s: taken for dead"):
        assert part in shown.getvalue()
    assert "10 of 10 chunks are stored (sealed)" in shown.getvalue()
    write_heartbeat(unfinished, 3)  # of a worker that was killed when all was over
    lines = CliRunner().invoke(main, ["inspect", str(unfinished), "--watch", "--json"]).stdout.splitlines()
    assert [json.loads(line)["workers"][0]["silent_s"] for line in lines] == [0, 30, 60]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_control_c_and_sigterm_delete_the_heartbeat(number: int, start_worker: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    stopped = start_worker(cache, "0/2", SLOW.format(0.5))
    stopped.until((cache / "workers" / "0.json").exists)
    stopped.signal_all(number)
    assert stopped.wait() == 130
    assert "run the same command again to resume" in stopped.err()
    assert not (cache / "workers").exists()


def test_watching_may_begin_before_the_pass(alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    monkeypatch.setattr(pass_state, "sleep", lambda seconds: shutil.copytree(alone, cache))
    result = CliRunner().invoke(main, ["inspect", str(cache), "--watch", "--json"])
    assert (result.exit_code, json.loads(result.stdout)["state"]) == (0, "sealed")
    assert f"waiting for a `clipglot cache` command to begin {cache}" in result.stderr
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    refused = CliRunner().invoke(main, ["inspect", str(tmp_path / "folder"), "--watch"])
    assert (refused.exit_code, "has no zarr.json, expected a cache" in refused.stderr) == (1, True)
