"""Batching of concurrent requests: what waits while a function runs is given to its next call together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class BusyError(Exception):
    """More requests wait than the server takes."""


class MicroBatcher(Generic[T, R]):
    """Calls a function in a thread with all requests that wait. It never waits for more to come."""

    def __init__(
        self, function: Callable[[Sequence[T]], Sequence[R | Exception]], executor: Executor, *, most: int, waiting: int
    ) -> None:
        """Batch requests.

        Args:
            function: answers several requests, in their order; an exception in the place of an answer is raised for
                that request alone.
            executor: of one thread.
            most: requests at a time.
            waiting: requests that may wait.
        """
        self._function, self._executor = function, executor
        self._most, self._most_waiting = most, waiting
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, request: T) -> R:
        """Answer one request.

        Raises:
            BusyError: too many wait.
            Exception: what the function gave or raised for this request.
        """
        if len(self._waiting) >= self._most_waiting:
            raise BusyError
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()
        self._waiting.append((request, future))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = [(request, future) for request, future in self._waiting[: self._most] if not future.done()]
            del self._waiting[: self._most]
            if not batch:
                continue
            requests = [request for request, _ in batch]
            try:
                answers = await loop.run_in_executor(self._executor, self._function, requests)
            except Exception as error:  # it must reach those who wait, whatever it is
                answers = [error] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # its client has gone
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
