"""Fuzz target of export folders, in a child process of bounded memory with a deadline an example."""

import json
from pathlib import Path

import pytest
from support.bounded_process import outcomes
from support.launcher import Launcher


@pytest.mark.parametrize("num", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_a_mutated_export_is_loaded_or_refused(num: int, merged: Path, launcher: Launcher) -> None:
    (outcome,) = outcomes(launcher, "support.fuzz_exports:exports", [[str(merged), num]])
    assert outcome.startswith("ok "), outcome
    assert min(json.loads(outcome.removeprefix("ok ")).values()) > 0
