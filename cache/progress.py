"""Progress of long work: the one callback type of caches, training, jobs and the demo."""

from collections.abc import Callable
from typing import NamedTuple


class Progress(NamedTuple):
    """How far a piece of work is.

    Attributes:
        stage: what is being done, in a word or two, e.g. "tokenize"; a command may have several stages.
        done: units done: images, captions, chunks, steps.
        total: units of the stage; None where that is not known.
    """

    stage: str
    done: int
    total: int | None = None


OnProgress = Callable[[Progress], None]
"""Called as work goes on; runs in the thread that works, so it should return at once."""


def ignore_progress(progress: Progress) -> None:
    """Show nothing: the default of every `on_progress`."""
