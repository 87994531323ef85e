"""Fixtures: passes shared by several worker processes."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.drawings import draw_images
from support.worker_processes import Started, ask, launching


@pytest.fixture(scope="session")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 160 images: 20 chunks of 8."""
    return draw_images(tmp_path_factory.mktemp("many"), 160)


@pytest.fixture(scope="session")
def alone(many_images: Path, make_cache: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that one worker makes of them. Read only."""
    cache = tmp_path_factory.mktemp("alone") / "cache.zarr"
    make_cache(many_images, cache, chunk_rows=8)
    return cache


@pytest.fixture(scope="module")
def launcher() -> Iterator[Any]:
    """The process that workers are forked from."""
    with launching() as process:
        yield process


@pytest.fixture
def start_worker(launcher: Any, many_images: Path, tiny_clip: Path, tmp_path: Path) -> Iterator[Any]:
    """`start_worker(output, "0/2")`: a worker on `many_images`, which does not outlive the test."""
    started: list[int] = []

    def begin(output: object, worker: str, script: str = "", *options: str) -> Started:
        arguments = ["cache", many_images, "-o", output, "--model", f"local-dir:{tiny_clip}", "--device", "cpu"]
        arguments += ["--batch-size", 8, "--chunk-rows", 8, "--num-workers", 1, "--shard", worker, *options]
        messages = tmp_path / f"messages{len(started)}"
        for stream in (1, 2):
            Path(f"{messages}.{stream}").touch()
        task: dict[str, Any] = {"arguments": [str(a) for a in arguments], "messages": str(messages), "script": script}
        task["environment"] = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        started.append(ask(launcher, task))
        return Started(started[-1], messages, launcher)

    yield begin
    for pid in started:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
