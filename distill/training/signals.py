"""Ends of a run before its last step: by a signal, or by a damaged chunk of the cache."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...cache.errors import CacheError


@contextmanager
def save_on_cache_error(save: Callable[[], int]) -> Iterator[None]:
    """Save the run if a chunk of the cache is found damaged or out of reach only when it is first read.

    Args:
        save: saves the run and returns its step.

    Raises:
        CacheError: the same, and how to go on.
    """
    try:
        yield
    except CacheError as error:
        raise CacheError(f"{error}. The run stands at step {save()}: then go on with --resume") from error


@contextmanager
def stop_on_signal(*, speaks: bool) -> Iterator[threading.Event]:
    """Event that SIGINT (Ctrl-C) and SIGTERM (a scheduler's preemption) set; a second signal acts as usual.

    Args:
        speaks: whether a line on standard error answers the first signal at once, because a step may take long.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous: dict[signal.Signals, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        stop.set()
        restore()
        if speaks:
            print("stopping after this step; a second signal loses what is not saved", file=sys.stderr, flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM (a scheduler's preemption) into KeyboardInterrupt in the block, as SIGINT (Ctrl-C) is.

    Further SIGTERMs are ignored while the block is left: a scheduler, and `torchrun` above the process, each send one.
    """

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
