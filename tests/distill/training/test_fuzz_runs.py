"""Fuzz target of run folders, in a child process of bounded memory with a deadline an example."""

import json
from pathlib import Path

import pytest
from support.bounded_process import outcomes
from support.launcher import Launcher


@pytest.mark.parametrize("num", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_a_mutated_run_is_read_or_refused(num: int, tiny_run: Path, launcher: Launcher) -> None:
    (outcome,) = outcomes(launcher, "support.fuzz_runs:runs", [[str(tiny_run), num]])
    assert outcome.startswith("ok "), outcome
    assert min(json.loads(outcome.removeprefix("ok ")).values()) > 0
