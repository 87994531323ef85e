"""Shards of one pass: real processes that are killed and locked out; and how a pass is watched."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from clipglot.cache.errors import CacheError
from clipglot.cache.storage.atomic import lock_folder
from clipglot.cache.write.shard import Shard
from clipglot.cli.main import main
from clipglot.distill.errors import DistillError
from clipglot.jobs import inspect as inspect_job
from clipglot.jobs.settings.cache import CacheSettings
from support.cache_bytes import delete_chunks, files
from support.metadata_edits import edit
from support.s3_server import Bucket
from support.small_disk import small_disk
from support.worker_scripts import GATED, SLOW

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "kills.py"


@pytest.mark.parametrize(
    ("flag", "environment", "expected"),
    [
        (None, {}, Shard(0, 1)),
        ("1/4", {}, Shard(1, 4)),
        (None, {"RANK": "2", "WORLD_SIZE": "8"}, Shard(2, 8)),
        (None, {"RANK": "3"}, Shard(0, 1)),
        (None, {"RANK": "x", "WORLD_SIZE": "1"}, Shard(0, 1)),
        ("1/4", {"RANK": "1", "WORLD_SIZE": "2"}, Shard(3, 8)),
    ],
)
def test_the_chunks_of_a_shard_and_a_rank(
    flag: str | None, environment: dict[str, str], expected: Shard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert CacheSettings(source=tmp_path, output=tmp_path, model="m", shard=flag).own_shard == expected


@pytest.mark.parametrize(("rank", "world"), [("3", "2"), ("0", "0"), ("x", "2"), ("0", "two"), ("-1", "2")])
def test_an_impossible_rank_is_refused(rank: str, world: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(
        DistillError, match=f"RANK={rank} and WORLD_SIZE={world} in the environment, expected RANK below"
    ):
        CacheSettings(source=tmp_path, output=tmp_path, model="m")


@pytest.mark.parametrize("flag", ["4/4", "1", "a/b", "-1/4", "1/0", ""])
def test_a_malformed_shard_is_refused(flag: str, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=rf"--shard {flag}: expected I/N with I from 0 to N - 1"):
        CacheSettings(source=tmp_path, output=tmp_path, model="m", shard=flag)


def test_processes_of_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("clipglot.jobs.settings.cache.num_usable_cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "5")
    given = {"source": tmp_path, "output": tmp_path, "model": "m"}
    assert CacheSettings(**given).resolved_num_workers == 3
    assert CacheSettings(**given, num_workers=7).resolved_num_workers == 7


def test_shards_wait_for_the_plan_and_the_last_one_seals(start_worker: Any, alone: Path, tmp_path: Path) -> None:
    cache, gate = tmp_path / "cache.zarr", tmp_path / "gate"
    second = start_worker(cache, "1/2")
    second.until(lambda: "shard 1/2 is waiting for shard 0 to plan" in second.err())
    assert not cache.exists()
    first = start_worker(cache, "0/2", GATED.format(str(gate)))
    assert "shard 1/2 did 40 images" in (early := second.succeed())
    assert "5 of 10 chunks are left to other shards" in early
    gate.touch()
    assert "shard 0/2 did 40 images in " in (late := first.succeed())
    assert "80 of 80 embedded" in late
    assert files(cache) == files(alone)
    assert not (cache / "workers").exists()


def test_a_shard_that_sees_no_image_leaves_its_chunks_to_a_rerun(
    start_worker: Any, many_images: Path, alone: Path, tmp_path: Path
) -> None:
    cache, empty = tmp_path / "cache.zarr", tmp_path / "empty"
    empty.mkdir()
    start_worker(cache, "0/2").succeed()
    blind = start_worker(cache, "1/2", "", "--image-root", empty)
    assert blind.wait() == 1
    assert "none of the first 40 images is there" in blind.err()
    assert "80 of 80 embedded" in start_worker(cache, "1/2").succeed()
    assert files(cache) == files(alone)


@pytest.mark.slow
def test_a_rerun_finishes_what_a_dead_job_left(start_worker: Any, alone: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    dead = start_worker(cache, "0/2", SLOW.format(0.4))
    dead.until((cache / "images/status/c/0").exists)
    dead.signal_all(signal.SIGKILL)
    dead.wait()
    (cache / ".zarr.json.0123.partial").write_bytes(b"half")
    (cache / "workers/1.json").write_text('{"worker": 1}')  # what an earlier version's worker said of itself
    left = start_worker(cache, "1/2").succeed()
    assert re.search(r"[1-4] of 10 chunks are left to other shards", left)
    assert json.loads(CliRunner().invoke(main, ["inspect", str(cache), "--json"]).stdout)["state"] == "planned"
    assert "80 of 80 embedded" in start_worker(cache, "0/2").succeed()
    assert files(cache) == files(alone)
    assert not (cache / "workers").exists()


@pytest.mark.slow
def test_another_number_of_shards_or_one_process_resumes(
    start_worker: Any, many_images: Path, make_cache: Callable[..., Any], alone: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(alone, tmp_path / "cache.zarr"))
    delete_chunks(cache, 1, 4, 5, 7, 9)
    assert "2 of 10 chunks are left" in start_worker(cache, "1/3").succeed()  # 5 and 9
    make_cache(many_images, cache, chunk_rows=8)
    assert files(cache) == files(alone)


@pytest.mark.slow
def test_torchrun_shares_a_pass_and_its_first_process_reports_for_all(
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
def test_one_process_and_shards_exclude_each_other_and_so_do_two_of_one_shard(
    start_worker: Any, many_images: Path, make_cache: Callable[..., Any], alone: Path, tmp_path: Path
) -> None:
    cache = Path(shutil.copytree(alone, tmp_path / "cache.zarr"))
    delete_chunks(cache, 0, 1)
    with lock_folder(cache, shared=True), pytest.raises(CacheError, match="another clipglot command is writing it"):
        make_cache(many_images, cache, chunk_rows=8)
    with lock_folder(cache):
        refused = start_worker(cache, "1/2")
        assert refused.wait() == 1
        assert "another clipglot command is writing it" in refused.err()
    gate = tmp_path / "gate"
    first = start_worker(cache, "0/2", GATED.format(str(gate)))
    first.until((cache / "workers/0-of-2").exists)
    twice = start_worker(cache, "0/2")
    assert twice.wait() == 1
    assert "another clipglot command is at shard 0/2: give each its own --shard I/N" in twice.err()
    start_worker(cache, "1/2").succeed()
    gate.touch()
    first.succeed()
    assert files(cache) == files(alone)


def test_the_last_that_leaves_a_shared_folder_sweeps_it(tmp_path: Path) -> None:
    partial = tmp_path / ".0.0123.partial"
    partial.touch()
    with lock_folder(tmp_path, shared=True):
        with lock_folder(tmp_path, shared=True):
            pass
        assert partial.exists()
    assert not partial.exists()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_control_c_and_sigterm_keep_what_is_written(number: int, start_worker: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    stopped = start_worker(cache, "0/2", SLOW.format(0.5))
    stopped.until((cache / "workers/0-of-2").exists)
    stopped.signal_all(number)
    assert stopped.wait() == 130
    assert "run the same command again to resume" in stopped.err()
    assert not (cache / "workers/0-of-2").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", [(), ("--dask",)])
def test_processes_killed_while_they_write_to_a_store_give_the_same_objects(
    how: tuple[str, ...], bucket: Bucket
) -> None:
    name = f"killed{len(how)}.zarr"
    command = [sys.executable, str(BENCHMARK), "--kills", "4", "--at", f"s3://bucket/{name}", "--pictures", "320"]
    command += ["--between", "1", "--slowed", "0.3", *how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].strip("|").split("|")]
    assert (cells[1], cells[2], *cells[5:]) == ("40", "4", "0", "0")
    assert int(cells[4]) == len(bucket.contents(name)) > 120


def unfinished(alone: Path, at: Path) -> Path:
    """A copy without six of its chunks."""
    cache = Path(shutil.copytree(alone, at))
    edit(cache, state="planned")
    delete_chunks(cache, 0, 1, 4, 5, 8, 9)
    return cache


@pytest.mark.slow
def test_a_read_only_disk_is_said_and_a_finished_cache_on_it_is_fine(
    start_worker: Any, alone: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        whole = Path(shutil.copytree(alone, disk / "whole.zarr"))
        cache = unfinished(alone, disk / "cache.zarr")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        worker = start_worker(cache, "1/2")
        assert worker.wait() == 1
        assert "Read-only file system): make it writable or choose another -o" in worker.err()
        assert "is complete already: 80 images embedded" in start_worker(whole, "1/2").succeed()


def test_inspect_counts_the_chunks_in_the_store(alone: Path, tmp_path: Path) -> None:
    cache = unfinished(alone, tmp_path / "cache.zarr")
    assert "4 of 10 chunks are stored (planned)" in CliRunner().invoke(main, ["inspect", str(cache)]).stdout
    document = json.loads(CliRunner().invoke(main, ["inspect", str(cache), "--json"]).stdout)
    assert (document["chunks_done"], document["num_chunks"], document["caption_chunks_left"]) == (4, 10, 0)


@pytest.mark.parametrize("as_json", [False, True])
def test_watching_begins_before_the_pass_and_ends_with_it(
    as_json: bool, alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.zarr"
    turns = iter([lambda: unfinished(alone, cache), lambda: (shutil.rmtree(cache), shutil.copytree(alone, cache))])
    monkeypatch.setattr(inspect_job, "sleep", lambda seconds: next(turns)())
    result = CliRunner().invoke(main, ["inspect", str(cache), "--watch", *["--json"] * as_json])
    assert result.exit_code == 0, result.output
    assert result.stderr.count(f"waiting for a `clipglot cache` command to begin {cache}") == 1
    if as_json:
        states = [json.loads(line) for line in result.stdout.splitlines()]
        assert [(state["state"], state["chunks_done"]) for state in states] == [("planned", 4), ("sealed", 10)]
    else:
        assert "4 of 10 chunks are stored (planned)" in result.stderr
        assert result.stdout == "10 of 10 chunks are stored (sealed)\n"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    refused = CliRunner().invoke(main, ["inspect", str(tmp_path / "folder"), "--watch"])
    assert (refused.exit_code, "has no zarr.json, expected a cache" in refused.stderr) == (1, True)
