"""Job arrays of batch schedulers: which tasks each process of the array does, and the locks that keep such processes apart.

Array task I of N does every N-th task. A last run without an array task finds all of them done, and commits the result.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shards.atomic import hold_lock
from shards.errors import SettingsError

T = TypeVar("T")
# Array tasks that start together hold each other's locks for a moment while they check them. A process that works holds its own far longer.
CHECK_SECONDS = 5.0
# How long a worker waits for another worker that is about to end: one of a killed run, or of a run on another machine.
WORKER_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class ArrayTask:
    """Array task ``task_id`` of a job array of ``num_tasks``.

    Raises:
        InputError: Impossible values.

    >>> ArrayTask(task_id=1, num_tasks=3).select("abcdefgh")
    ['b', 'e', 'h']
    """

    task_id: int
    num_tasks: int

    def __post_init__(self) -> None:
        if self.num_tasks < 1:
            raise SettingsError(f"`num_tasks` {self.num_tasks}: must be at least 1.")
        if not 0 <= self.task_id < self.num_tasks:
            raise SettingsError(f"`task_id` {self.task_id}: must be between 0 and {self.num_tasks - 1}, with `num_tasks` {self.num_tasks}.")

    def select(self, tasks: Sequence[T]) -> list[T]:
        """The tasks of this array task."""
        return list(tasks[self.task_id :: self.num_tasks])

    def __str__(self) -> str:
        return f"task {self.task_id} of {self.num_tasks}"


def pick_array_task(task_id: int | None, num_tasks: int | None) -> ArrayTask | None:
    """The array task of two settings; None, for all tasks, if neither is given.

    Raises:
        InputError: One is given without the other, or the values are impossible.
    """
    if task_id is None and num_tasks is None:
        return None
    if task_id is None or num_tasks is None:
        raise SettingsError("`task_id` and `num_tasks` go together: `task_id` 0 with `num_tasks` 8 is the first of eight array tasks.")
    return ArrayTask(task_id=task_id, num_tasks=num_tasks)


@contextlib.contextmanager
def writer_lock(folder: Path, name: str, array_task: ArrayTask | None, activity: str) -> Iterator[None]:
    """Hold the lock of the only writer of ``name`` in ``folder``, or of one of the array tasks that write it together.

    A process takes its own lock first and checks the others' locks then: of two processes that exclude each other, at least one notices.

    Args:
        folder: Created if it is missing.
        name: What is written.
        array_task: This process's array task; None if it does all tasks.
        activity: What this process does, for messages ("writing split 'train'").

    Raises:
        OccupiedError: Another process does all tasks, or the same array task, or belongs to a job array of another size; or this process
            does all tasks, and any array task is running.
    """
    siblings = f".{array_task.num_tasks}-shares" if array_task is not None else ""
    own = name if array_task is None else f"{name}.{array_task.task_id}{siblings}"
    with hold_lock(folder, own, activity if array_task is None else f"{activity} as {array_task}"):
        for lock in sorted(folder.glob(f".{name}.lock")) + sorted(folder.glob(f".{name}.*-shares.lock")):
            other = lock.name[1 : -len(".lock")]
            if other != own and not (siblings and other.endswith(siblings)):
                with hold_lock(folder, other, activity, wait_seconds=CHECK_SECONDS):
                    pass  # left by a killed process, and removed now
        yield
