"""Worker processes that never outlive the process they work for."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any


def worker_pool(workers: int, module: str, start: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """A pool of processes, each forked from one that has imported `module` and begun with `start(*arguments)`.

    A script that gets here needs `if __name__ == "__main__":` around its own work, because the processes import the
    main module.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([module])
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(dict(os.environ), start, arguments)
    )


def _begin(environment: dict[str, str], start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)  # otherwise the credentials would be those of when the first pool began
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    start(*arguments)


def _die_with_parent() -> None:
    """A killed parent cannot stop its workers; without this they would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
