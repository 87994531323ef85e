"""Launcher: a process that has imported torch and open_clip, and forks commands and scripts, each of which would take
seconds to import them."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 120

# Answers each line of JSON on its standard input with a number: the id of a process that it forked, or the exit code of
# one that it waited for (negative: a signal). A forked process leads a session of its own before its id is told. No
# module of clipglot is imported before the fork, so that a script can show that it needs none.
LAUNCHER = """
import gc, json, os, signal, sys, time
import click, fsspec, h5py, numpy, open_clip, pyarrow, rich.progress, s3fs, timm, torch, transformers, zarr
import transformers.models.bert.modeling_bert  # with what every language model needs
gc.collect()
gc.freeze()  # else each forked process goes through all objects of the imports when it ends: a second of CPU time
for line in sys.stdin:
    task = json.loads(line)
    if "wait" in task:
        print(os.waitstatus_to_exitcode(os.waitpid(task["wait"], 0)[1]), flush=True)
        continue
    parents_end, childs_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(childs_end)
        os.read(parents_end, 1)  # returns when the child closes its end
        os.close(parents_end)
        print(pid, flush=True)
        continue
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so do those of nohup
    os.close(parents_end)
    for name, value in task["environment"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.chdir(task["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in ((1, task["stdout"]), (2, task["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY), descriptor)
    os.close(childs_end)  # now the caller may close its side of a terminal
    sys.argv[1:] = task["arguments"]
    exec(task["script"])
    if task["is_command"]:
        from clipglot.cli.main import main
        main()
    sys.exit()
"""


@dataclass(frozen=True)
class Process:
    """A forked process, and the files with its output."""

    pid: int
    stdout: Path
    stderr: Path
    launcher: "Launcher"

    def out(self) -> str:
        return self.stdout.read_text()

    def err(self) -> str:
        return self.stderr.read_text()

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Its exit code; negative is a signal."""
        return self.launcher._ask({"wait": self.pid}, timeout_s)

    def succeed(self) -> str:
        """Wait for its end, which must be a good one; returns its standard output."""
        assert self.wait() == 0, self.err()
        return self.out()

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds, as long as the process lives."""
        while not condition():
            assert Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z", self.err()
            time.sleep(0.002)

    def signal_all(self, number: int) -> None:
        """Send a signal to the process and its workers, as a terminal and a scheduler do."""
        os.killpg(self.pid, number)


class Launcher:
    """Forks processes from one that has made the imports."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def start(
        self,
        arguments: list[object],
        folder: Path,
        *,
        script: str = "",
        environment: Mapping[str, str | None] | None = None,
        terminal: str | None = None,
    ) -> Process:
        """Start `clipglot` with some arguments.

        Args:
            arguments: of the command.
            folder: working directory; the output goes to files below it, unless to a terminal.
            script: Python that runs before the command, with `json`, `os`, `sys` and `time`; it may end the process.
            environment: variables to set, or to unset where None.
            terminal: path of a terminal for the output.
        """
        outputs = [Path(terminal)] * 2 if terminal else _new_files(folder)
        return self._fork(arguments, script, folder, outputs, environment, is_command=True)

    def run(
        self, script: str, *arguments: object, folder: Path, environment: Mapping[str, str | None] | None = None
    ) -> Process:
        """Run a Python script, with `json`, `numpy`, `open_clip`, `os`, `sys`, `time` and `torch` imported, to its end.

        Args:
            script: its source.
            *arguments: `sys.argv[1:]`.
            folder: working directory; the output goes to files below it.
            environment: variables to set, or to unset where None.
        """
        process = self._fork(arguments, script, folder, _new_files(folder), environment, is_command=False)
        process.succeed()
        return process

    def _fork(
        self,
        arguments: Sequence[object],
        script: str,
        folder: Path,
        outputs: Sequence[Path],
        environment: Mapping[str, str | None] | None,
        *,
        is_command: bool,
    ) -> Process:
        answer = self._ask(
            {
                "arguments": [str(argument) for argument in arguments],
                "script": script,
                "is_command": is_command,
                "environment": dict(environment or {}),
                "cwd": str(folder),
                "stdout": str(outputs[0]),
                "stderr": str(outputs[1]),
            }
        )
        return Process(answer, outputs[0], outputs[1], self)

    def _ask(self, task: dict[str, Any], timeout_s: float = TIMEOUT_S) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            if "wait" in task:  # else its end would be the answer to the next question
                with suppress(ProcessLookupError):
                    os.killpg(task["wait"], signal.SIGKILL)
                self._process.stdout.readline()
            raise AssertionError(f"{task}: no answer within {timeout_s} s")
        return int(self._process.stdout.readline())


def _new_files(folder: Path) -> list[Path]:
    """Two empty files with new names."""
    number = sum(1 for _ in folder.glob("*.stdout"))
    files = [folder / f"{number}.stdout", folder / f"{number}.stderr"]
    for file in files:
        file.touch(exist_ok=False)
    return files


@contextmanager
def launching() -> Iterator[Launcher]:
    """Run the launcher until the end of the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdin=pipe, stdout=pipe, text=True) as process:
        yield Launcher(process)


def kill_all(processes: list[Process]) -> None:
    """Kill whatever is left of some processes and their workers."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.signal_all(signal.SIGKILL)
