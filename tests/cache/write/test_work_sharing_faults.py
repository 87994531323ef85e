"""Faults of the disk, of the store and of bytes in a pass that several workers share. Each is one clear error."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.errors import CacheError
from clipglot.cache.read.cache import Cache
from support.cache_bytes import delete_chunks, files
from support.metadata_edits import edit
from support.s3_server import Bucket, serving
from support.small_disk import small_disk
from support.worker_scripts import GATED, IMPATIENT, SLOW

pytestmark = pytest.mark.slow

# Sealing cannot write a file of 100 bytes.
LIMITED = """
import resource
from clipglot.cache.read.arrays import CheckedArrays
write_info, limits = CheckedArrays.write_info, resource.getrlimit(resource.RLIMIT_FSIZE)
def write_little(arrays, info):
    resource.setrlimit(resource.RLIMIT_FSIZE, (99, limits[1]))
    try:
        write_info(arrays, info)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
CheckedArrays.write_info = write_little
"""

# The wall clock is so many years ahead of ours, and jumps an hour back and forth with each reading.
OTHER_CLOCK = """
import itertools
now, leap = time.time, itertools.cycle((3600, -3600))
time.time = lambda: now() + {0} * 365.25 * 86400 + next(leap)
time.time_ns = lambda: int(time.time() * 1e9)
"""


def unfinished(alone: Path, at: Path) -> Path:
    """A copy without six of its chunks."""
    cache = Path(shutil.copytree(alone, at))
    edit(cache, state="planned")
    delete_chunks(cache, 0, 1, 4, 5, 8, 9)
    return cache


def test_a_full_disk_ends_the_workers_and_what_they_finished_stays(
    start_worker: Any, alone: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 2**20) as disk:
        cache, filler = unfinished(alone, disk / "cache.zarr"), disk / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 3 * 4096)
        for worker in [start_worker(cache, f"{i}/2") for i in (0, 1)]:
            assert worker.wait() == 1
            assert "No space left on device" in worker.err()
            assert "free some space and run the same command again" in worker.err()
            assert "Traceback" not in worker.err()
        filler.unlink()
        for worker in [start_worker(cache, f"{i}/2") for i in (0, 1)]:
            worker.succeed()
        assert files(cache) == files(alone)


def test_a_file_that_may_not_grow_is_a_full_disk(start_worker: Any, alone: Path, tmp_path: Path) -> None:
    cache = unfinished(alone, tmp_path / "cache.zarr")
    worker = start_worker(cache, "0/2", LIMITED)
    assert worker.wait() == 1
    assert "zarr.json: cannot be written (File too large): free some space" in worker.err()
    start_worker(cache, "1/2").succeed()
    assert files(cache) == files(alone)


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


def test_clocks_that_differ_by_years_and_leap_change_nothing(start_worker: Any, alone: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    first = start_worker(cache, "0/3", OTHER_CLOCK.format(-30) + IMPATIENT + SLOW.format(0.3))
    first.until((cache / "workers" / "0.json").exists)
    os.utime(cache / "workers" / "0.json", (2**32, 2**32))  # of the year 2106
    second = start_worker(cache, "1/3", OTHER_CLOCK.format(40) + IMPATIENT + SLOW.format(0.3))
    second.until((cache / "workers" / "1.json").exists)
    second.signal_all(signal.SIGKILL)  # 2/3 never comes
    first.succeed()
    assert files(cache) == files(alone)


def test_one_worker_that_is_started_twice_runs_once(start_worker: Any, alone: Path, tmp_path: Path) -> None:
    cache, gate, heartbeat = tmp_path / "cache.zarr", tmp_path / "gate", tmp_path / "cache.zarr" / "workers" / "0.json"
    earlier = start_worker(cache, "0/2", GATED.format(str(gate)))
    earlier.until(heartbeat.exists)
    later = start_worker(cache, "0/2")
    later.until(lambda: f'"pid": {later.pid}' in heartbeat.read_text())
    gate.touch()
    assert earlier.wait() == 1
    assert f"({later.pid}) has begun as worker 0 of 2, too, and goes on: give each process its own" in earlier.err()
    later.succeed()
    assert files(cache) == files(alone)


@pytest.mark.parametrize("chunk", ["images/status/c/3", "images/key/bytes/c/0"])
def test_a_flipped_byte_in_the_store_is_named_by_whoever_meets_it(
    chunk: str, bucket: Bucket, start_worker: Any, alone: Path, tmp_path: Path
) -> None:
    name = f"{len(bucket.objects())}.zarr"
    url = bucket.upload(unfinished(alone, tmp_path / "cache.zarr"), name)
    whole = bucket.content(f"{name}/{chunk}")
    bucket.flip_a_byte(f"{name}/{chunk}")
    for worker in [start_worker(url, f"{i}/2") for i in (0, 1)]:
        assert worker.wait() == 1
        assert f"{url}: damaged chunk {chunk} (" in worker.err()
        assert "Traceback" not in worker.err()
    with pytest.raises(CacheError, match="is not complete"):
        Cache(url).require_sealed()
    bucket.put(f"{name}/{chunk}", whole)
    for worker in [start_worker(url, f"{i}/2") for i in (0, 1)]:
        worker.succeed()
    assert bucket.contents(name) == files(alone)


def test_a_store_that_goes_away_is_one_clear_error(
    start_worker: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server") as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        worker = start_worker("s3://bucket/c.zarr", "0/2", SLOW.format(1))
        worker.until(lambda: "c.zarr/workers/0.json" in bucket.objects())
    assert worker.wait() == 1
    assert "Error: worker 0 of 2: s3://bucket/c.zarr/" in worker.err()
    assert "check the connection, and AWS_ENDPOINT_URL if the endpoint is not Amazon's" in worker.err()
    assert len([line for line in worker.err().splitlines() if "Error" in line]) == 1
