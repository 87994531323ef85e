"""Fixtures: a pass that several processes share, and embeddings to import."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.embedding_files import read_given, write_jsonl
from support.launcher import Process


@pytest.fixture
def start_worker(start_command: Any, many_images: Path, tiny_clip: Path) -> Callable[..., Process]:
    """`start_worker(output, "0/2", script, *options)`: a worker of a pass over `many_images`."""

    def start(output: object, shard: str, script: str = "", *options: object) -> Process:
        command = ["cache", many_images, "-o", output, "--model", f"local-dir:{tiny_clip}", "--device", "cpu"]
        command += ["--batch-size", 8, "--chunk-rows", 8, "--num-workers", 1, "--shard", shard, *options]
        return start_command(*command, script=script)

    return start


@pytest.fixture(scope="module")
def given(tiny_cache: Path) -> tuple[np.ndarray, list[str], list[list[str]]]:
    """Raw embeddings of forty images, their paths and captions."""
    return read_given(tiny_cache)


@pytest.fixture
def npy(given: Any, tmp_path: Path) -> Path:
    """An .npy file with rows.jsonl beside it."""
    raw, keys, captions = given
    np.save(tmp_path / "emb.npy", raw)
    write_jsonl(tmp_path / "rows.jsonl", keys, captions)
    return tmp_path / "emb.npy"
