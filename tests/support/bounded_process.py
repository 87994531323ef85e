"""A child process with bounded memory and time, for inputs that may hang, crash or exhaust a machine.

The child takes cases one after another, so that imports are paid once; a case that kills it is named.
"""

import faulthandler
import importlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEADROOM_BYTES = 3_000_000_000  # of addresses beyond what imports took; each thread reserves some
CASE_S = 60  # far more than any case takes: only a hang exceeds it
_SCRIPT = "import sys; sys.path[:0] = {paths!r}; from support.bounded_process import _serve; _serve({target!r})"


def outcomes(target: str, cases: Sequence[Any], *, processor_s: int = 600) -> list[str]:
    """What a function did in the child for each case: `ok VALUE`, `TypeOfError: message`, or `killed: how`.

    Args:
        target: `module:function`, called with one case.
        cases: as JSON.
        processor_s: for all cases together.
    """
    found: list[str] = []
    while len(found) < len(cases):
        rest = [*cases[len(found) :]]
        script = _SCRIPT.format(paths=[path for path in sys.path if path], target=target)
        child = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(rest),
            capture_output=True,
            text=True,
            timeout=processor_s,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        lines = [line.removeprefix("OUTCOME ") for line in child.stdout.splitlines() if line.startswith("OUTCOME ")]
        found += [json.loads(line) for line in lines]
        if len(lines) < len(rest):
            found.append(f"killed: exit code {child.returncode}\n{child.stderr[-3000:]}")
    return found


def _serve(target: str) -> None:
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    cases = json.load(sys.stdin)
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


def _address_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
