"""Stopping a run between two steps, when somebody or a scheduler asks for it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
