"""Executors run a list of tasks: in this process, in a pool of worker processes, or on a cluster (:mod:`pipeline.execution.ray_cluster`).

A task is a module-level function with picklable arguments and a small result. Results are returned in the order of the tasks. Workers are not
forks of this process, which would be unsafe with threads. Where the system supports it, they come from multiprocessing's fork server, which
imports their modules once for all of them.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from types import FrameType
from typing import Any, Protocol, TypeVar, TypeVarTuple

from pipeline.execution.library_warnings import print_library_messages
from pipeline.execution.messages import MessageSettings, configure_messages
from shards.errors import ResourceError

Args = TypeVarTuple("Args")
R = TypeVar("R")
START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class Cluster(Protocol):
    """Machines that run tasks instead of local worker processes."""

    def run(
        self, function: Callable[..., R], tasks: Iterable[tuple[Any, ...]], *, shared: Sequence[object] = (), cpus: int = 1, gpus: int = 0
    ) -> Generator[R, None, None]:
        """Run ``function(*shared, *task)`` for every task and yield the results in order.

        A task whose process or machine dies is run again, so running a task twice must do no harm. Paths must be valid on all machines.

        Args:
            function: A module-level function.
            tasks: The arguments of each call.
            shared: First arguments of all calls. A process receives them once and uses the same objects for all its tasks.
            cpus, gpus: What one task needs.

        Raises:
            ResourceError: A task's process died in every attempt.
            Exception: Whatever a task raised. The other tasks end with the connection to the cluster at the latest.
        """
        ...

    def resources(self) -> list[dict[str, float]]:
        """The number of ``CPU`` and ``GPU`` of each machine."""
        ...


def default_workers() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def preload_workers(*modules: str) -> None:
    """Import the workers' modules in the background, in the fork server, while this process does something else."""
    if START_METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def _start_worker(messages: tuple[bool, bool], initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    # Ctrl-C reaches all processes of the terminal. Only the parent handles it, and ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()
    quiet, as_json = messages
    configure_messages(quiet=quiet, as_json=as_json)
    print_library_messages()
    if initializer is not None:
        initializer(*initargs)


def exit_with_parent() -> None:
    """End this process when its parent ends. Otherwise it would wait forever, or write to the files of the next run."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM at the end of the block.

    A pool that is interrupted while it is made leaks its semaphores, and one that is interrupted while it starts a process forgets to wait for it.
    """
    received: list[tuple[int, FrameType | None]] = []
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: handler for number in (signal.SIGINT, signal.SIGTERM) if callable(handler := signal.getsignal(number))}
    for deferred in handlers:
        signal.signal(deferred, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        for deferred, handler in handlers.items():
            signal.signal(deferred, handler)
        for number, frame in received[:1]:
            handlers[signal.Signals(number)](number, frame)


def run_tasks(
    function: Callable[[*Args], R], tasks: Sequence[tuple[*Args]], *, workers: int, cluster: Cluster | None = None
) -> Generator[R, None, None]:
    """Run ``function(*task)`` for every task and yield the results in order.

    Args:
        function: A module-level function.
        tasks: The arguments of each call.
        workers: Number of processes; 1 runs everything in this process.
        cluster: Runs the tasks instead of local processes.

    Raises:
        ResourceError: A worker process was killed, most often because the system ran out of memory.
        Exception: Whatever a task raised; tasks that have not started are cancelled.
    """
    if cluster is not None:
        return cluster.run(function, tasks)
    if workers <= 1 or len(tasks) <= 1:
        return (function(*task) for task in tasks)
    # A limited number of tasks is submitted at a time, so that a million tasks are not a million futures.
    return run_ahead(function, tasks, workers=min(workers, len(tasks)), ahead=4 * workers - 1)


def _submitted(pool: ProcessPoolExecutor, function: Callable[[*Args], R], tasks: Sequence[tuple[*Args]]) -> list[Future[R]]:
    try:
        return [pool.submit(function, *task) for task in tasks]
    except (EOFError, ConnectionError) as error:  # the fork server, which starts the processes, was killed
        raise BrokenProcessPool(str(error)) from None


def run_ahead(
    function: Callable[[*Args], R],
    tasks: Iterable[tuple[*Args]],
    *,
    workers: int,
    ahead: int,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Generator[R, None, None]:
    """Like :func:`run_tasks`, but always in worker processes, and at most ``ahead`` tasks beyond the result that is consumed are started.

    Args:
        function: A module-level function.
        tasks: The arguments of each call.
        workers: Number of processes.
        ahead: How many tasks may be started in advance.
        initializer, initargs: Called once in each process when it starts.
    """
    context = multiprocessing.get_context(START_METHOD)
    messages = (MessageSettings.quiet, MessageSettings.as_json)
    with signals_deferred():
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(messages, initializer, initargs))
    pending: deque[Future[R]] = deque()
    remaining = iter(tasks)
    try:
        while True:
            new = list(itertools.islice(remaining, ahead + 1 - len(pending)))
            with signals_deferred():
                pending.extend(_submitted(pool, function, new))
            if not pending:
                break
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise ResourceError("A worker process was killed, perhaps because memory ran out. Run the command again with fewer `workers`.") from None
    finally:
        with contextlib.suppress(KeyboardInterrupt):
            pool.shutdown(wait=True, cancel_futures=True)
