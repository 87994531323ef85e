"""Workers of a pass as processes of their own, forked from one that has imported torch."""

import json
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLOW = """
from clipglot.encoders.image_tower import ImageTower
forward = ImageTower.forward
ImageTower.forward = lambda tower, x: time.sleep({}) or forward(tower, x)
"""
IMPATIENT = "import clipglot.cache.write.work_sharing as sharing\nsharing.BEAT_S = 0.2\n"
IMPATIENT += "sharing.Liveness.__init__.__defaults__ = (2.0, *sharing.Liveness.__init__.__defaults__[1:])\n"

# Forks `clipglot` commands after the imports, because importing torch takes longer than all that is tested.
LAUNCHER = """
import json, os, sys, time
import clipglot.jobs.cache
from clipglot.cli.main import main
for line in sys.stdin:
    task = json.loads(line)
    if "wait" in task:
        print(os.waitstatus_to_exitcode(os.waitpid(task["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    os.setsid()
    os.environ.update(task["environment"])
    for descriptor in (1, 2):
        os.dup2(os.open(task["messages"] + "." + str(descriptor), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    exec(task["script"])
    main(task["arguments"])
"""


@dataclass
class Started:
    """A worker that was started."""

    pid: int
    messages: Path
    launcher: subprocess.Popen[str]

    def out(self) -> str:
        return Path(f"{self.messages}.1").read_text()

    def err(self) -> str:
        return Path(f"{self.messages}.2").read_text()

    def wait(self) -> int:
        return ask(self.launcher, {"wait": self.pid})

    def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z", self.err()
            time.sleep(0.01)


def ask(launcher: subprocess.Popen[str], task: dict[str, Any]) -> int:
    assert launcher.stdin is not None
    assert launcher.stdout is not None
    launcher.stdin.write(json.dumps(task) + "\n")
    launcher.stdin.flush()
    assert select.select([launcher.stdout], [], [], 120)[0], task
    return int(launcher.stdout.readline())


@contextmanager
def launching() -> Iterator[subprocess.Popen[str]]:
    """The process that forks workers."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdin=pipe, stdout=pipe, text=True) as process:
        yield process


def ended(worker: Started) -> str:
    assert worker.wait() == 0, worker.err()
    return worker.out()
