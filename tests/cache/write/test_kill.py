"""A pass killed or stopped at any moment leaves no half-written file, no process and no shared memory behind."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from clipglot.cache.read.cache import Cache
from clipglot.cache.read.verify import verify
from clipglot.demo.run import ENGLISH_CLIP
from support.cache_bytes import files
from support.drawings import draw_images
from support.launcher import Process
from support.processes import all_processes, session

SETTINGS: dict[str, Any] = {"batch_size": 8, "chunk_rows": 8, "num_workers": 2, "device": "cpu"}
NUM_CHUNKS = 20


@dataclass
class Pass:
    """A `clipglot cache` that is running."""

    process: Process
    memory: set[str] = field(default_factory=set)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds; keep which shared memory the pass has then."""
        self.process.until(condition)
        self.process.signal_all(signal.SIGSTOP)  # on a slow machine the pass would end before its memory is read
        self.memory |= set(shared_memory(session(self.process.pid)))
        self.process.signal_all(signal.SIGCONT)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 160 images: 20 chunks of 8."""
    return draw_images(tmp_path_factory.mktemp("images"), 8 * NUM_CHUNKS)


@pytest.fixture(scope="module")
def undisturbed(images: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that an undisturbed pass makes."""
    cache = tmp_path_factory.mktemp("undisturbed") / "cache.zarr"
    make_cache(images, cache, **SETTINGS)
    return cache


@pytest.fixture
def running(start_command: Any, images: Path, tiny_clip: Path) -> Any:
    """`with running(cache, **settings) as pass_`: start `clipglot cache`; nothing of it may outlive the block."""

    @contextmanager
    def run(cache: Path, source: Path = images, **more: Any) -> Iterator[Pass]:
        settings = ({"model": f"local-dir:{tiny_clip}"} | SETTINGS | more).items()
        options = [part for name, value in settings for part in (f"--{name.replace('_', '-')}", value)]
        pass_ = Pass(start_command("cache", source, "-o", cache, *options))
        yield pass_
        deadline = time.monotonic() + 20
        while session(pass_.process.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert session(pass_.process.pid) == {}
        assert not pass_.memory & set(shared_memory(all_processes()))

    return run


def shared_memory(pids: Iterable[int]) -> Counter[str]:
    """The shared memory of decoding processes: device and inode, and how many of some processes have it."""
    counts: Counter[str] = Counter()
    for pid in pids:
        with suppress(OSError):  # it ended meanwhile, or belongs to somebody else
            counts.update(set(re.findall(r"(\S+ \d+) +/memfd:clipglot", Path(f"/proc/{pid}/maps").read_text())))
    return counts


def num_done(cache: Path, array: str = "images/status/c") -> int:
    folder = cache / array
    return sum(file.name.isdigit() for file in folder.iterdir()) if folder.is_dir() else 0


# The chunks that are done when each kill comes. The fast run kills once, at a moment of its own for each test.
MANY_KILLS = pytest.param((0, 4, 8, 11), marks=pytest.mark.slow)


@pytest.mark.parametrize("kills_at", [(5,), MANY_KILLS])
def test_a_pass_killed_at_random_moments_gives_the_same_files(
    kills_at: tuple[int, ...],
    running: Any,
    images: Path,
    undisturbed: Path,
    make_cache: Callable[..., Any],
    tmp_path: Path,
) -> None:
    cache, moments = tmp_path / "cache.zarr", random.Random(0)
    for at_least in kills_at:
        with running(cache) as pass_:
            pass_.until(lambda at_least=at_least: num_done(cache) >= at_least if at_least else cache.exists())
            time.sleep(moments.uniform(0, 0.05))
            pass_.kill()
    make_cache(images, cache, **SETTINGS)
    assert verify(Cache(cache)) == []
    assert files(cache) == files(undisturbed)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_control_c_and_sigterm_end_the_pass_without_a_traceback_and_keep_its_work(
    number: int, running: Any, images: Path, undisturbed: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache.zarr"
    with running(cache) as pass_:
        pass_.until(lambda: num_done(cache) >= 5)
        pass_.process.signal_all(signal.SIGSTOP)
        (memory,) = pass_.memory  # one, else the check that it is freed would check nothing
        assert shared_memory(session(pass_.process.pid))[memory] > 1  # of the pass and its decoding processes
        pass_.process.signal_all(number)
        pass_.process.signal_all(signal.SIGCONT)
        assert pass_.process.wait() == 130
    messages = pass_.process.out() + pass_.process.err()
    assert "Traceback" not in messages
    assert "leaked" not in messages
    assert len(messages.splitlines()) <= 5, messages  # four of the stages, one of the end
    assert 5 <= num_done(cache) < NUM_CHUNKS
    assert f"stopped: {num_done(cache) * 8} of " in messages
    make_cache(images, cache, **SETTINGS)
    assert files(cache) == files(undisturbed)


def test_a_killed_decoding_process_is_replaced(running: Any, images: Path, undisturbed: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.zarr"
    with running(cache) as pass_:
        pass_.until(lambda: num_done(cache) >= 3)
        workers = [pid for pid, command in session(pass_.process.pid).items() if "forkserver" in command]
        os.kill(max(workers), signal.SIGKILL)  # the lowest id is the server that the workers were forked from
        assert pass_.process.wait() == 0
    assert "Traceback" not in pass_.process.err()
    assert files(cache) == files(undisturbed)


@pytest.mark.parametrize("kills_at", [(7,), MANY_KILLS])
def test_adding_views_killed_at_random_moments_gives_the_same_files_and_keeps_the_plain_view(
    kills_at: tuple[int, ...],
    running: Any,
    images: Path,
    undisturbed: Path,
    make_cache: Callable[..., Any],
    tmp_path: Path,
) -> None:
    views: dict[str, Any] = {"views": 4, "augment_scale": 0.3, "augment_flip": 0.5}
    at_once, cache = tmp_path / "at_once.zarr", Path(shutil.copytree(undisturbed, tmp_path / "cache.zarr"))
    make_cache(images, at_once, **SETTINGS | views | {"num_workers": 1})
    norm, moments = cache / "images" / "norm", random.Random(0)

    def has_begun() -> bool:
        return bool(json.loads((norm / "zarr.json").read_text())["shape"][0] == 4)

    for at_least in kills_at:  # chunks of the last view
        with running(cache, **views) as pass_:
            pass_.until(lambda least=at_least: num_done(cache, "images/norm/c/3") >= least if least else has_begun())
            time.sleep(moments.uniform(0, 0.05))
            pass_.kill()
        assert Cache(cache).require_sealed().info.num_views == 1
        assert verify(Cache(cache)) == []
    make_cache(images, cache, **SETTINGS | views)
    assert verify(Cache(cache)) == []
    assert files(cache) == files(at_once)


@pytest.mark.parametrize("kills_at", [(5,), pytest.param((1, 5, 9), marks=pytest.mark.slow)])
def test_text_targets_killed_at_random_moments_give_the_same_files(
    kills_at: tuple[int, ...], running: Any, images: Path, make_cache: Callable[..., Any], tmp_path: Path
) -> None:
    """Their pass comes first: no image is read before every translation has its embedding."""
    source, at_once, cache = images.with_name("translated.jsonl"), tmp_path / "at_once.zarr", tmp_path / "cache.zarr"
    rows = [json.loads(line) for line in images.read_text().splitlines()]
    source.write_text("\n".join(json.dumps(row | {"en": [f"a red circle {i}"]}) for i, row in enumerate(rows)))
    settings: dict[str, Any] = {"model": f"local-dir:{ENGLISH_CLIP}", "teacher_field": "en"}
    make_cache(source, at_once, **SETTINGS | settings | {"teacher_field": ("en",)})
    moments = random.Random(0)
    for at_least in kills_at:  # chunks of captions
        with running(cache, source, **settings) as pass_:
            pass_.until(lambda at_least=at_least: num_done(cache, "teacher/status/c") >= at_least)
            time.sleep(moments.uniform(0, 0.01))
            pass_.kill()
        assert num_done(cache) == 0 or num_done(cache, "teacher/status/c") == num_done(at_once, "teacher/status/c")
        assert Cache(cache).info.state == "planned"
        assert verify(Cache(cache)) == []
    make_cache(source, cache, **SETTINGS | settings | {"teacher_field": ("en",)})
    assert verify(Cache(cache)) == []
    assert files(cache) == files(at_once)
