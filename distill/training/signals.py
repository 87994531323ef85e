"""How a run ends before its last step, and keeps what it learned: by a signal, or for want of a chunk."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...cache.errors import CacheError


@contextmanager
def resumable(save: Callable[[], int]) -> Iterator[None]:
    """Save the run if a chunk of the cache turns out damaged or out of reach only when its turn comes.

    Args:
        save: keeps what was learned and returns the step.

    Raises:
        CacheError: the same, and how to go on.
    """
    try:
        yield
    except CacheError as error:
        raise CacheError(f"{error}. The run stands at step {save()}: then go on with --resume") from error


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGINT (Ctrl-C) and SIGTERM (a scheduler's preemption) set; a second signal acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: object) -> None:
        stop.set()
        for caught, handler in previous.items():
            signal.signal(caught, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM (a scheduler's preemption) raises KeyboardInterrupt in the block, as SIGINT (Ctrl-C) does.

    Further ones change nothing while the block is left: a scheduler and `torchrun` above the process each send theirs.
    """

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
