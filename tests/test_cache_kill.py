"""Killed or stopped at any moment, a pass leaves nothing half-written, nothing running and nothing in memory."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clipglot.cache.store import Cache
from drawn import draw_pictures

SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 400 pictures: 50 chunks of 8."""
    return draw_pictures(tmp_path_factory.mktemp("many"), 400)


@pytest.fixture(scope="module")
def command(pictures: Path, tiny_clip: Path) -> list[str]:
    """A pass over them, less the output."""
    options = ["--model", f"local-dir:{tiny_clip}", "--batch-size", "8", "--chunk-rows", "8", "--workers", "2"]
    return [sys.executable, "-m", "clipglot", "cache", str(pictures), *options, "--device", "cpu", "-o"]


def num_done(cache: Path) -> int:
    folder = cache / "images" / "status" / "c"
    return sum(file.name.isdigit() for file in folder.iterdir()) if folder.is_dir() else 0


def until(condition: object, process: subprocess.Popen[str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def session(leader: int) -> dict[int, str]:
    """The living processes of a session: id and command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_text().replace("\0", " ")
            except OSError:  # it ended meanwhile
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found[int(folder.name)] = command
    return found


@contextmanager
def running(command: list[str], cache: Path) -> Iterator[subprocess.Popen[str]]:
    """A pass in a session of its own; nothing of it may outlive the block."""
    pipe = subprocess.PIPE
    before = set(SHARED_MEMORY.glob("*"))
    process = subprocess.Popen([*command, str(cache)], start_new_session=True, stdout=pipe, stderr=pipe, text=True)
    try:
        yield process
        deadline = time.monotonic() + 20
        while session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert session(process.pid) == {}
        left = set(SHARED_MEMORY.glob("psm_*")) | set(SHARED_MEMORY.glob("sem.*"))
        assert left <= before
    finally:
        for leftover in session(process.pid):
            os.kill(leftover, signal.SIGKILL)
        process.communicate()


def finish(command: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, str(cache)], capture_output=True, text=True, check=True)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the cache that an undisturbed pass makes."""
    cache = tmp_path_factory.mktemp("undisturbed") / "cache.zarr"
    finish(command, cache)
    return files(cache)


@pytest.mark.slow
def test_a_pass_killed_at_random_moments_gives_the_same_files(
    command: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    cache, moments = tmp_path / "cache.zarr", random.Random(0)
    for at_least in (0, 9, 21, 33):  # chunks done when the killer wakes up
        with running(command, cache) as process:
            until(lambda wanted=at_least: cache.exists() if not wanted else num_done(cache) >= wanted, process)
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
            process.wait()
    assert finish(command, cache).returncode == 0
    assert Cache(cache).verify() == []
    assert files(cache) == undisturbed


@pytest.mark.slow
def test_control_c_ends_the_pass_without_a_traceback_and_keeps_its_work(
    command: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    cache = tmp_path / "cache.zarr"
    with running(command, cache) as process:
        until(lambda: num_done(cache) >= 5, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the pass and its workers
        _, messages = process.communicate(timeout=20)
    assert process.returncode not in (0, -signal.SIGINT)
    assert "Traceback" not in messages
    assert len(messages.splitlines()) < 5
    assert 5 <= num_done(cache) < 50
    finish(command, cache)
    assert files(cache) == undisturbed


@pytest.mark.slow
def test_a_killed_worker_is_one_clear_error_and_the_pass_goes_on_later(
    command: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    cache = tmp_path / "cache.zarr"
    with running(command, cache) as process:
        until(lambda: num_done(cache) >= 5, process)
        children = [pid for pid, line in session(process.pid).items() if "forkserver" in line]
        os.kill(max(children), signal.SIGKILL)  # the forkserver came first; its forks bear its name
        _, messages = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "Error: a decoding process died near row" in messages
    assert "run the same command again to resume" in messages
    assert "Traceback" not in messages
    finish(command, cache)
    assert files(cache) == undisturbed
