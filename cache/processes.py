"""Pool of worker processes that end with their parent."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.context import ForkServerContext, ForkServerProcess
from types import ModuleType
from typing import Any

CONTEXT = get_context("forkserver")  # of the locks and memory that workers share
_HIDING = threading.Lock()


class _ProcessWithoutMain(ForkServerProcess):
    """A process that does not import the main module of its parent."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802 (multiprocessing's name)
        with _HIDING:
            main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
            try:
                return ForkServerProcess._Popen(process_obj)
            finally:
                sys.modules["__main__"] = main


class _ContextWithoutMain(ForkServerContext):
    Process = _ProcessWithoutMain


def worker_pool(
    workers: int, module: str, initializer: Callable[..., None], *arguments: Any, import_main: bool = False
) -> ProcessPoolExecutor:
    """Create a pool of worker processes, forked from a server that has imported `module`.

    Args:
        workers: number of processes.
        module: name of the module to import once, in the fork server.
        initializer: runs first in each worker.
        *arguments: arguments of `initializer`.
        import_main: whether each worker imports the main module, because something in `arguments` is defined there. A
            script must then guard its own work by `if __name__ == "__main__":`. Without need it would cost whatever
            the script imports, such as torch, in each worker.
    """
    CONTEXT.set_forkserver_preload([module])
    return ProcessPoolExecutor(
        workers,
        mp_context=CONTEXT if import_main else _ContextWithoutMain(),
        initializer=_init_worker,
        initargs=(dict(os.environ), initializer, arguments),
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
