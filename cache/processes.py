"""Pool of worker processes that end with their parent."""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any

CONTEXT = get_context("forkserver")  # of all workers, and of the locks and memory that they share


def worker_pool(workers: int, module: str, initializer: Callable[..., None], *arguments: Any) -> ProcessPoolExecutor:
    """Create a pool of worker processes, forked from a server that has imported `module`.

    The processes import the main module, so a script that gets here must guard its own work by
    `if __name__ == "__main__":`.

    Args:
        workers: number of processes.
        module: name of the module to import once, in the fork server.
        initializer: runs first in each worker.
        *arguments: arguments of `initializer`.
    """
    CONTEXT.set_forkserver_preload([module])
    return ProcessPoolExecutor(
        workers, mp_context=CONTEXT, initializer=_init_worker, initargs=(dict(os.environ), initializer, arguments)
    )


def kill_workers(pool: ProcessPoolExecutor) -> None:
    """End the workers of a broken pool.

    `shutdown` alone can wait forever: while the executor's thread ends the workers, `submit` may start another one,
    which is not ended but waited for (seen in Python 3.11, `_ExecutorManagerThread.terminate_broken`).
    """
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=True)


def _init_worker(environment: dict[str, str], initializer: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)  # otherwise workers would have the credentials from the start of the first pool
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the parent stops its workers
    threading.Thread(target=_die_with_parent, daemon=True).start()
    initializer(*arguments)


def _die_with_parent() -> None:
    """Exit when the parent does. A killed parent cannot stop its workers, which would wait for work forever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
