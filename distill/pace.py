"""How fast a run goes, from one line of metrics to the next."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Pace:
    """Mean times of steps, and of what they waited for.

    A GPU runs behind the host, so a step that waits for it pays for those before: only all of them together are true.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._begin()

    def _begin(self) -> None:
        self._steps, self._waited_s, self._other_s = 0, 0.0, 0.0
        self._since = time.perf_counter()

    def steps(self, inputs: Iterable[T]) -> Iterator[T]:
        """The inputs of steps, as they come."""
        started = time.perf_counter()
        for given in inputs:
            self._waited_s += time.perf_counter() - started
            self._steps += 1
            yield given
            started = time.perf_counter()

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """Validation or a checkpoint, begun when the device had nothing left to do."""
        started = time.perf_counter()
        yield
        self._other_s += time.perf_counter() - started

    def mark(self) -> dict[str, float]:
        """Means since the last mark, once the device has nothing left to do."""
        step_s = (time.perf_counter() - self._since - self._other_s) / self._steps
        measured = {"pairs_per_s": self._batch_size / step_s, "data_s": self._waited_s / self._steps, "step_s": step_s}
        self._begin()
        return measured
