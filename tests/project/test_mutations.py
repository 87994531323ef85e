"""Deadline of a fuzz example: it ends a process that hangs, and none that is done with its examples."""

import json
import sys
from pathlib import Path

import pytest
from support.launcher import Launcher

SCRIPT = """
sys.path[:0] = json.loads(sys.argv[1])
import hypothesis.strategies as st
from support import mutations
mutations.EXAMPLE_S = 1
mutations.search(st.just(0), lambda example: time.sleep(float(sys.argv[2])), 1)
time.sleep(1.5)
"""


@pytest.mark.parametrize(("example_s", "exit_code"), [(0, 0), (60, 1)])
def test_a_deadline_lasts_as_long_as_its_example(
    launcher: Launcher, tmp_path: Path, example_s: int, exit_code: int
) -> None:
    paths = json.dumps([path for path in sys.path if path])
    process = launcher.start([paths, example_s], tmp_path, script=f"{SCRIPT}\nsys.exit()")
    assert process.wait() == exit_code, process.err()
