"""Fuzz targets of caches and Parquet files, each in a child process of bounded memory with a deadline an example."""

import json
from pathlib import Path

import pytest
from support.bounded_process import outcomes
from support.launcher import Launcher

few_and_many = pytest.mark.parametrize("num", [30, pytest.param(300, marks=pytest.mark.slow)])


@few_and_many
@pytest.mark.parametrize("target", ["metadata", "ragged", "parquet"])
def test_whatever_was_mutated_is_read_as_before_or_refused(
    target: str, num: int, tiny_cache: Path, launcher: Launcher
) -> None:
    (outcome,) = outcomes(launcher, f"support.fuzz_caches:{target}", [[str(tiny_cache), num]])
    assert outcome.startswith("ok "), outcome
    counts = json.loads(outcome.removeprefix("ok "))
    assert counts["refused"] > num // 20
    assert counts["read"] > 0
