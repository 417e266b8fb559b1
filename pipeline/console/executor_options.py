"""The options for where a command's tasks run: in local processes, on a Ray cluster, or as one task of a job array."""

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from pipeline.console.errors import print_note
from pipeline.console.options import grouped, typed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pipeline.execution.array_tasks import ArrayTask
    from pipeline.execution.executors import Cluster

NEXT_AFTER_ARRAY = "with the same options, but without --task-id and --num-tasks, once all array tasks are done"


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Where tasks run, as the user chose it."""

    executor: str
    ray_address: str | None
    task_id: int | None
    num_tasks: int | None

    @property
    def is_local(self) -> bool:
        """Whether tasks run in processes on this machine."""
        return self.executor == "local"

    def cluster(self, workers: int | None) -> "AbstractContextManager[Cluster | None]":
        """A context manager that opens the chosen cluster; for local processes it gives None.

        Args:
            workers: The value of ``--workers``.

        Raises:
            click.UsageError: Options that do not go together.
        """
        if self.is_local:
            if self.ray_address is not None:
                raise click.UsageError("--ray-address requires --executor ray.")
            return contextlib.nullcontext()
        if self.task_id is not None:
            raise click.UsageError("--task-id requires --executor local. Ray distributes the tasks itself.")
        if self.ray_address is not None and typed("workers"):
            raise click.UsageError("--workers cannot be combined with --ray-address: the cluster determines its number of CPUs.")
        from pipeline.execution.ray_cluster import ray_cluster

        return ray_cluster(self.ray_address, cpus=workers, report=print_note)

    def array_task(self) -> "ArrayTask | None":
        """The chosen task of a job array; None to do everything."""
        from pipeline.execution.array_tasks import pick_array_task

        return pick_array_task(self.task_id, self.num_tasks)


# The command gets ExecutorOptions as ``executor``.
executor_options = grouped(
    "executor",
    ExecutorOptions,
    click.option(
        "--executor", type=click.Choice(["local", "ray"]), default="local", help="Where tasks run: local processes, or Ray on one or more machines."
    ),
    click.option(
        "--ray-address",
        default=None,
        metavar="HOST:PORT|auto",
        show_default="a Ray on this machine, with --workers CPUs",
        help="Address of a running Ray cluster.",
    ),
    click.option(
        "--task-id",
        type=int,
        default=None,
        show_default="all tasks",
        help="Do only this task of a job array, counted from 0. Finish with the same command without this option.",
    ),
    click.option("--num-tasks", type=int, default=None, help="With --task-id: number of tasks in the job array."),
)
