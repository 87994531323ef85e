"""A child process with bounded memory and time, for inputs that may hang, crash or exhaust a machine.

The child takes cases one after another, so that imports are paid once; a case that kills it is named.
"""

import faulthandler
import importlib
import json
import os
import resource
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.launcher import Launcher, kill_all

HEADROOM_BYTES = 3_000_000_000  # of addresses beyond what imports took; each thread reserves some
CASE_S = 60  # far more than any case takes: only a hang exceeds it
_SCRIPT = "sys.path[:0] = {paths!r}; from support.bounded_process import _serve; _serve({target!r})"


def outcomes(launcher: Launcher, target: str, cases: Sequence[Any], *, all_s: int = 600) -> list[str]:
    """What a function did in the child for each case: `ok VALUE`, `TypeOfError: message`, or `killed: how`.

    Args:
        launcher: forks the child.
        target: `module:function`, called with one case.
        cases: as JSON.
        all_s: that all cases together may take.
    """
    found: list[str] = []
    script = _SCRIPT.format(paths=[path for path in sys.path if path], target=target)
    while len(found) < len(cases):
        rest = [*cases[len(found) :]]
        with tempfile.TemporaryDirectory() as folder:
            child = launcher.start([json.dumps(rest)], Path(folder), script=script)
            try:
                exit_code = child.wait(all_s)
            finally:
                kill_all([child])
            output, errors = child.out(), child.err()
        lines = [line.removeprefix("OUTCOME ") for line in output.splitlines() if line.startswith("OUTCOME ")]
        found += [json.loads(line) for line in lines]
        if len(lines) < len(rest):
            found.append(f"killed: exit code {exit_code}\n{errors[-3000:]}")
    return found


def _serve(target: str) -> None:
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    cases = json.loads(sys.argv[1])
    limit = _address_bytes() + HEADROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case in cases:
        faulthandler.dump_traceback_later(CASE_S, exit=True)
        try:
            outcome = f"ok {function(case)}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.write(f"OUTCOME {json.dumps(outcome)}\n")
        sys.stdout.flush()
    if threading.active_count() > 1:
        os._exit(0)  # a thread that an error left behind must not hold the process
    sys.exit()


def _address_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
