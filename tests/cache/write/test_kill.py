"""Killed or stopped at any moment, a pass leaves nothing half-written, nothing running and nothing in memory."""

import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.demo.run import ENGLISH_CLIP
from support.drawings import draw_images

SETTINGS: dict[str, Any] = {"batch_size": 8, "chunk_rows": 8, "num_workers": 2, "device": "cpu"}

# Runs one `clipglot` command after another, each in a process and session of its own. They are forked from here
# after the imports, because importing torch takes longer than all that is tested.
LAUNCHER = """
import json, os, sys
import clipglot.jobs.cache
from clipglot.cli.main import main
for line in sys.stdin:
    arguments, messages = json.loads(line)
    pid = os.fork()
    if not pid:
        os.setsid()
        print(os.getpid(), flush=True)  # not before it can be seen by its session
        for descriptor in (1, 2):
            os.dup2(os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
        main(arguments)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass
class Pass:
    """A `clipglot cache` that is running."""

    pid: int
    messages: Path
    answers: IO[str]
    memory: set[str] = field(default_factory=set)

    def wait(self) -> int:
        """Its exit code; negative is a signal."""
        assert select.select([self.answers], [], [], 60)[0], self.messages.read_text()
        return int(self.answers.readline())

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert session(self.pid), self.messages.read_text()
            time.sleep(0.002)
        os.killpg(self.pid, signal.SIGSTOP)  # on a slow machine the pass would be over before the look at it is
        self.memory |= set(shared_memory(session(self.pid)))
        os.killpg(self.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def launcher() -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdin=pipe, stdout=pipe, text=True) as process:
        yield process


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 240 images: 30 chunks of 8."""
    return draw_images(tmp_path_factory.mktemp("many"), 240)


@pytest.fixture(scope="module")
def undisturbed(images: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that an undisturbed pass makes."""
    cache = tmp_path_factory.mktemp("undisturbed") / "cache.zarr"
    make_cache(images, cache, **SETTINGS)
    return cache


@pytest.fixture
def running(launcher: subprocess.Popen[str], images: Path, tiny_clip: Path, tmp_path: Path) -> Any:
    """`with running(cache, **more) as a_pass`: start `clipglot cache`; nothing of it may outlive the block."""

    @contextmanager
    def run(cache: Path, source: Path = images, **more: Any) -> Iterator[Pass]:
        given = ({"model": f"local-dir:{tiny_clip}"} | SETTINGS | more).items()
        options = [str(part) for name, value in given for part in (f"--{name.replace('_', '-')}", value)]
        arguments = ["cache", str(source), "-o", str(cache), *options]
        messages = tmp_path / "messages"
        messages.unlink(missing_ok=True)
        assert launcher.stdin is not None
        assert launcher.stdout is not None
        launcher.stdin.write(json.dumps([arguments, str(messages)]) + "\n")
        launcher.stdin.flush()
        a_pass = Pass(int(launcher.stdout.readline()), messages, launcher.stdout)
        try:
            yield a_pass
            deadline = time.monotonic() + 20
            while session(a_pass.pid) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert session(a_pass.pid) == {}
            assert not a_pass.memory & set(shared_memory(everyone()))
        finally:
            for leftover in session(a_pass.pid):
                os.kill(leftover, signal.SIGKILL)

    return run


def shared_memory(pids: Iterable[int]) -> Counter[str]:
    """The memory for pixels that processes hold: device and inode, and how many hold it."""
    found: Counter[str] = Counter()
    for pid in pids:
        with suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            found.update(set(re.findall(r"(\S+ \d+) +/memfd:clipglot", Path(f"/proc/{pid}/maps").read_text())))
    return found


def everyone() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def num_done(cache: Path, array: str = "images/status/c") -> int:
    folder = cache / array
    return sum(file.name.isdigit() for file in folder.iterdir()) if folder.is_dir() else 0


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


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pass_killed_at_random_moments_gives_the_same_files(
    running: Any, images: Path, undisturbed: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache, moments = tmp_path / "cache.zarr", random.Random(0)
    for at_least in (0, 6, 13, 21):  # chunks done when the killer wakes up
        with running(cache) as a_pass:
            a_pass.until(lambda wanted=at_least: num_done(cache) >= wanted if wanted else cache.exists())
            time.sleep(moments.uniform(0, 0.05))
            os.kill(a_pass.pid, signal.SIGKILL)
            assert a_pass.wait() == -signal.SIGKILL
    make_cache(images, cache, **SETTINGS)
    assert verify(Cache(cache)) == []
    assert files(cache) == files(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_control_c_and_sigterm_end_the_pass_without_a_traceback_and_keep_its_work(
    number: int, running: Any, images: Path, undisturbed: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache.zarr"
    with running(cache) as a_pass:
        a_pass.until(lambda: num_done(cache) >= 5)
        os.killpg(a_pass.pid, signal.SIGSTOP)
        (memory,) = a_pass.memory  # one for all, else the check that nobody holds it later would check nothing
        assert shared_memory(session(a_pass.pid))[memory] > 1  # the pass and those workers that have begun
        os.killpg(a_pass.pid, number)  # as a terminal and a scheduler do: to the pass and its workers
        os.killpg(a_pass.pid, signal.SIGCONT)
        assert a_pass.wait() == 130
    messages = a_pass.messages.read_text()
    assert "Traceback" not in messages
    assert "leaked" not in messages
    assert len(messages.splitlines()) <= 5, messages  # four of the stages, one of the end
    assert 5 <= num_done(cache) < 30
    assert f"stopped: {num_done(cache)} of " in messages
    make_cache(images, cache, **SETTINGS)
    assert files(cache) == files(undisturbed)


def test_a_killed_decoding_process_is_replaced(running: Any, images: Path, undisturbed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    with running(cache) as a_pass:
        a_pass.until(lambda: num_done(cache) >= 5)
        workers = [pid for pid, command in session(a_pass.pid).items() if "forkserver" in command]
        os.kill(max(workers), signal.SIGKILL)  # the lowest id is the server that the workers were forked from
        assert a_pass.wait() == 0
    assert "Traceback" not in a_pass.messages.read_text()
    assert files(cache) == files(undisturbed)


def test_adding_views_killed_at_random_moments_gives_the_same_files_and_never_harms_those_there_are(
    running: Any, images: Path, undisturbed: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    views: dict[str, Any] = {"views": 4, "augment_scale": 0.3, "augment_flip": 0.5}
    at_once, cache = tmp_path / "at_once.zarr", Path(shutil.copytree(undisturbed, tmp_path / "cache.zarr"))
    make_cache(images, at_once, **SETTINGS | views | {"num_workers": 1})
    moments = random.Random(0)
    for at_least in (0, 7, 15, 23):  # chunks of the last view that are done when the killer wakes up
        with running(cache, **views) as a_pass:
            room = cache / "images" / "norm" / "zarr.json"
            a_pass.until(
                lambda wanted=at_least, room=room: (
                    num_done(cache, "images/norm/c/3") >= wanted
                    if wanted
                    else json.loads(room.read_text())["shape"][0] == 4
                )
            )
            time.sleep(moments.uniform(0, 0.05))
            os.kill(a_pass.pid, signal.SIGKILL)
            assert a_pass.wait() == -signal.SIGKILL
        assert Cache(cache).require_sealed().info.num_views == 1
        assert verify(Cache(cache)) == []
    make_cache(images, cache, **SETTINGS | views)
    assert verify(Cache(cache)) == []
    assert files(cache) == files(at_once)


def test_a_teacher_killed_at_random_moments_gives_the_same_files(
    running: Any, images: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    """Its pass comes first: no image is looked at before every translation has its embedding."""
    source, at_once, cache = images.with_name("taught.jsonl"), tmp_path / "at_once.zarr", tmp_path / "cache.zarr"
    rows = [json.loads(line) for line in images.read_text().splitlines()]
    source.write_text("\n".join(json.dumps(row | {"en": [f"a red circle {i}"]}) for i, row in enumerate(rows)))
    taught: dict[str, Any] = {"model": f"local-dir:{ENGLISH_CLIP}", "teacher_field": "en"}
    make_cache(source, at_once, **SETTINGS | taught | {"teacher_field": ("en",)})
    moments = random.Random(0)
    for at_least in (1, 5, 9):  # chunks of captions that are done when the killer wakes up
        with running(cache, source, **taught) as a_pass:
            a_pass.until(lambda wanted=at_least: num_done(cache, "teacher/status/c") >= wanted)
            time.sleep(moments.uniform(0, 0.01))
            os.kill(a_pass.pid, signal.SIGKILL)
            assert a_pass.wait() == -signal.SIGKILL
        assert num_done(cache) == 0 or num_done(cache, "teacher/status/c") == num_done(at_once, "teacher/status/c")
        assert Cache(cache).info.state == "planned"
        assert verify(Cache(cache)) == []
    make_cache(source, cache, **SETTINGS | taught | {"teacher_field": ("en",)})
    assert verify(Cache(cache)) == []
    assert files(cache) == files(at_once)
