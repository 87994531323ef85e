"""A Dask cluster of real processes on 127.0.0.1, started from the launcher, which has imported torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.launcher import Process

LOOPBACK = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
RUN = "\nfrom distributed.cli.dask_{} import main\nmain()\n"


@dataclass
class DaskCluster:
    """A scheduler, the workers that join it, and commands that share their work with them.

    Attributes:
        start: a process, see the fixture `start_command`.
        folder: for the file with the scheduler's address, and for the workers.
        command: `clipglot cache` with the options of every pass, where passes are driven.
    """

    start: Callable[..., Process]
    folder: Path
    command: list[object] = field(default_factory=list)
    scheduler: Process = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    @property
    def file(self) -> Path:
        """The file that names the scheduler's address."""
        return self.folder / "scheduler.json"

    def begin(self, **environment: str) -> None:
        """Start the scheduler."""
        self.file.unlink(missing_ok=True)
        options = [*LOOPBACK, "--port", 0, "--scheduler-file", self.file]
        self.scheduler = self.start(*options, script=RUN.format("scheduler"), environment=environment)
        self.scheduler.until(lambda: self.file.exists() and self.file.read_text().endswith("}"))

    def worker(self, name: str, script: str = "", *more: object) -> Process:
        """Start a worker, whose process runs a script first."""
        options = ["--scheduler-file", self.file, "--name", name, "--nthreads", 1, "--no-nanny", "--memory-limit", 0]
        options += [*LOOPBACK, "--local-directory", self.folder, *more]
        return self.start(*options, script=script + RUN.format("worker"))

    def drive(self, cache: object, *more: Any, script: str = "") -> Process:
        """Start a pass."""
        return self.share(*self.command, "-o", cache, *more, script=script)

    def share(self, *command: Any, script: str = "") -> Process:
        """Start a command, whose process runs a script first."""
        return self.start(*command, "--scheduler", self.file, script=script)
