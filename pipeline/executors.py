"""Where tasks run: in this process, or in a pool of processes that are started afresh (no fork of this one: safe beside threads).

A task is a module-level function with picklable arguments and a small result. Results come in the order of the tasks. Where the
system has it, workers come from multiprocessing's fork server, which has imported their modules once for all of them.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import TypeVar, TypeVarTuple

from shards.errors import ResourceError

Args = TypeVarTuple("Args")
R = TypeVar("R")
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def default_workers() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def warm_up(*modules: str) -> None:
    """Begin to import what workers will need, in the background, while this process does something else."""
    if _METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def _begin_worker() -> None:
    # Ctrl-C goes to the whole terminal's group; the parent alone answers it, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever, or write where the next run writes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_tasks(function: Callable[[*Args], R], tasks: Sequence[tuple[*Args]], *, workers: int) -> Generator[R, None, None]:
    """Run ``function(*task)`` for every task and yield the results in order.

    Args:
        workers: Number of processes; 1 runs everything here.

    Raises:
        ResourceError: A worker process was killed (by the system's memory guard, most often).
        Exception: Whatever a task raised; tasks that have not begun are dropped.
    """
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield function(*task)
        return
    context = multiprocessing.get_context(_METHOD)
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=_begin_worker)
    try:
        waiting: list[Future[R]] = []
        remaining = iter(tasks)
        while True:
            # A window of tasks in flight, so that a million tasks are not a million futures.
            room = 4 * workers - len(waiting)
            waiting.extend(pool.submit(function, *task) for task in itertools.islice(remaining, room))
            if not waiting:
                break
            yield waiting.pop(0).result()
    except BrokenProcessPool:
        raise ResourceError("A worker process was killed, perhaps for memory. Run the command again with fewer --workers.") from None
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            pool.shutdown(wait=True, cancel_futures=True)
