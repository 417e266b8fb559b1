"""Where tasks run: in this process, in a pool of processes that are started afresh (no fork of this one: safe beside threads), or on
the machines of a cluster (:mod:`pipeline.execution.ray_cluster`).

A task is a module-level function with picklable arguments and a small result. Results come in the order of the tasks. Where the
system has it, workers come from multiprocessing's fork server, which has imported their modules once for all of them.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any, Protocol, TypeVar, TypeVarTuple

from shards.errors import ResourceError

Args = TypeVarTuple("Args")
R = TypeVar("R")
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class Cluster(Protocol):
    """Machines that run tasks in place of processes of this one."""

    def run(
        self, function: Callable[..., R], tasks: Iterable[tuple[Any, ...]], *, shared: Sequence[object] = (), cpus: int = 1, gpus: int = 0
    ) -> Generator[R, None, None]:
        """Run ``function(*shared, *task)`` for every task and yield the results in order.

        A task whose process or machine dies is done again, so tasks have to bear being done twice. Paths in them mean the same everywhere.

        Args:
            shared: What all tasks need. A process gets it once, and then the same objects for each of its tasks.
            cpus, gpus: What one task needs.

        Raises:
            ResourceError: A task's process died again and again.
            Exception: Whatever a task raised; the others end with the connection to the cluster, if not before.
        """
        ...

    def resources(self) -> list[dict[str, float]]:
        """What each machine has: ``CPU``, ``GPU``."""
        ...


def default_workers() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def preload_workers(*modules: str) -> None:
    """Begin to import what workers will need, in the background, while this process does something else."""
    if START_METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def _start_worker(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    # Ctrl-C goes to the whole terminal's group; the parent alone answers it, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()
    if initializer is not None:
        initializer(*initargs)


def exit_with_parent() -> None:
    """End this process when the one that started it ends: it would wait for ever, or write where the next run writes."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def run_tasks(
    function: Callable[[*Args], R], tasks: Sequence[tuple[*Args]], *, workers: int, cluster: Cluster | None = None
) -> Generator[R, None, None]:
    """Run ``function(*task)`` for every task and yield the results in order.

    Args:
        workers: Number of processes; 1 runs everything here.
        cluster: Runs the tasks instead, if there is one.

    Raises:
        ResourceError: A worker process was killed (by the system's memory guard, most often).
        Exception: Whatever a task raised; tasks that have not begun are dropped.
    """
    if cluster is not None:
        return cluster.run(function, tasks)
    if workers <= 1 or len(tasks) <= 1:
        return (function(*task) for task in tasks)
    # A window of tasks in flight, so that a million tasks are not a million futures.
    return run_ahead(function, tasks, workers=min(workers, len(tasks)), ahead=4 * workers - 1)


def run_ahead(
    function: Callable[[*Args], R],
    tasks: Iterable[tuple[*Args]],
    *,
    workers: int,
    ahead: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Generator[R, None, None]:
    """Like :func:`run_tasks`, always in processes: when a result is taken, at most ``ahead`` tasks behind it have been begun.

    Args:
        initializer, initargs: Called once in each process as it starts.
    """
    context = multiprocessing.get_context(START_METHOD)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(initializer, initargs))
    waiting: deque[Future[R]] = deque()
    remaining = iter(tasks)
    try:
        while True:
            waiting.extend(pool.submit(function, *task) for task in itertools.islice(remaining, ahead + 1 - len(waiting)))
            if not waiting:
                break
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ResourceError("A worker process was killed, perhaps for memory. Run the command again with fewer --workers.") from None
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            pool.shutdown(wait=True, cancel_futures=True)
