"""`clipglot serve` in a process of its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.launcher import Launcher, Process, kill_all


@dataclass(frozen=True)
class Site:
    """A server that answers.

    Attributes:
        url: of its page, with the token if it has one.
        process: that serves it.
    """

    url: str
    process: Process

    @property
    def port(self) -> int:
        return int(self.url.split("/")[2].rpartition(":")[2])


@contextmanager
def serving(launcher: Launcher, folder: Path, *arguments: object) -> Iterator[Site]:
    """Serve until the end of the block.

    Args:
        launcher: of the process.
        folder: for its output and its thumbnails.
        *arguments: of `clipglot serve`; without `--port` any free one is taken.
    """
    folder.mkdir(exist_ok=True)
    port = () if "--port" in arguments else ("--port", 0)
    # Drawings of one object are all alike; only copies are folded.
    options = (*port, "--json", "--thumbnail-folder", folder / "thumbnails", "--fold-above", 0.999)
    process = launcher.start(["serve", *arguments, *options], folder)
    try:
        process.until(lambda: process.out().endswith("}\n"))
        yield Site(json.loads(process.out())["url"], process)
    finally:
        kill_all([process])
