"""The part of a list of tasks that one of several processes does, and the locks that keep such processes apart.

For batch schedulers: process I of N does every N-th task, and a last run without a share finds all of them done, and commits.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shards.atomic import hold_lock
from shards.errors import InputError

T = TypeVar("T")
# Processes that start together look at each other's locks for a moment; whoever really works holds its own much longer.
LOOKING_SECONDS = 5.0
# How long a worker waits for one that is about to end: of a run that was killed, on another machine.
WORKER_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class ArrayTask:
    """What process ``task_id`` of ``num_tasks`` does.

    Raises:
        InputError: Impossible values; names the option.

    >>> ArrayTask(task_id=1, num_tasks=3).of("abcdefgh")
    ['b', 'e', 'h']
    """

    task_id: int
    num_tasks: int

    def __post_init__(self) -> None:
        if self.num_tasks < 1:
            raise InputError(f"--num-tasks {self.num_tasks}: must be at least 1.")
        if not 0 <= self.task_id < self.num_tasks:
            raise InputError(f"--task-id {self.task_id}: must lie between 0 and {self.num_tasks - 1}, with --num-tasks {self.num_tasks}.")

    def of(self, tasks: Sequence[T]) -> list[T]:
        """The tasks that fall to this process."""
        return list(tasks[self.task_id :: self.num_tasks])

    def __str__(self) -> str:
        return f"task {self.task_id} of {self.num_tasks}"


def pick_array_task(task_id: int | None, num_tasks: int | None) -> ArrayTask | None:
    """The share that two options name; None: everything.

    Raises:
        InputError: One without the other, or impossible values.
    """
    if task_id is None and num_tasks is None:
        return None
    if task_id is None or num_tasks is None:
        raise InputError("--task-id and --num-tasks go together: --task-id 0 --num-tasks 8 does the first of eight shares.")
    return ArrayTask(task_id=task_id, num_tasks=num_tasks)


@contextlib.contextmanager
def writer_lock(folder: Path, name: str, array_task: ArrayTask | None, doing: str) -> Iterator[None]:
    """Hold the place of the one writer of ``name`` in ``folder``, or of one of the processes that share the work among them.

    A process takes its own lock first and looks for the others' then: of two that must not work together at least one sees the other.

    Raises:
        OccupiedError: Another process does everything, this very share, or a share of another number of tasks; or, for who does
            everything, any share.
    """
    beside = f".{array_task.num_tasks}-shares" if array_task is not None else ""
    own = name if array_task is None else f"{name}.{array_task.task_id}{beside}"
    with hold_lock(folder, own, doing if array_task is None else f"{doing} as {array_task}"):
        for lock in sorted(folder.glob(f".{name}.lock")) + sorted(folder.glob(f".{name}.*-shares.lock")):
            other = lock.name[1 : -len(".lock")]
            if other != own and not (beside and other.endswith(beside)):
                with hold_lock(folder, other, doing, wait_seconds=LOOKING_SECONDS):
                    pass  # a killed process left it: it is gone now
        yield
