"""Tasks on a Ray cluster, or on a local Ray instance (https://docs.ray.io/en/latest/ray-core/walkthrough.html).

The code is sent with the job, so all machines run this checkout; the packages that it needs must be installed on them. Ray runs a task again if
its process dies. Ray is imported only in this module, and only when it is used.
"""

import contextlib
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.execution.executors import default_workers
from shards.errors import CapstreamError, InputError, ResourceError, SettingsError, first_line

R = TypeVar("R")
ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "model", "shards")
# How often a task is run again when its process dies.
RETRIES = 3
# Submitted tasks per CPU, so that a million shards are not a million tasks at once.
TASKS_PER_CPU = 4
CONNECT_SECONDS = 10.0
# A task that takes longer than this is reported: Ray itself waits silently for resources that others use.
REPORT_SECONDS = 120.0
# Results are small, and shared objects are sent once. Ray's default would take a third of the memory.
OBJECT_STORE_BYTES = 2 << 30


@contextlib.contextmanager
def ray_cluster(
    address: str | None = None,
    *,
    cpus: int | None = None,
    object_store_bytes: int = OBJECT_STORE_BYTES,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator["RayCluster"]:
    """Connect to a Ray cluster, or start a local Ray instance. On exit, disconnect or shut it down, which ends all running tasks.

    Args:
        address: The address of the cluster's head, ``host:6379``; ``auto`` for the cluster that this machine belongs to; None for a local
            instance.
        cpus: Number of CPUs of a local instance, by default all cores.
        object_store_bytes: Memory of a local instance for objects that tasks share.
        report: Receives a message when a task takes long, perhaps because no CPU or GPU is free.

    Raises:
        InputError: Ray is not installed, or the address is invalid.
        ResourceError: There is no cluster at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its new default; setting it avoids a warning
    try:
        import ray
    except ImportError as error:
        raise InputError(f"`executor` ray: needs Ray ({error}). Install it with: pip install '.[ray]'") from None
    code = {"py_modules": [str(ROOT / package) for package in PACKAGES], "excludes": ["__pycache__"]}
    common: dict[str, Any] = {"runtime_env": code, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        ray.init(address="local", num_cpus=cpus or default_workers(), object_store_memory=object_store_bytes, include_dashboard=False, **common)
    else:
        _check_address(address)
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ResourceError(
                f"`ray_address` {address}: cannot be used ({first_line(error)}). Check it with: ray status --address {address}"
            ) from None
    try:
        yield RayCluster(report)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check the address. Ray itself would try for a minute, and print messages of its own."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise SettingsError(f"`ray_address` {address}: give the address of the cluster's head like host:6379, or auto on a machine of the cluster.")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"`ray_address` {address}: nothing answers there ({error}). Start the cluster with: ray start --head --port {port}, or omit "
            "`ray_address` to use a local Ray instance."
        ) from None


class RayCluster:
    """The Ray cluster of this process, as a :class:`pipeline.execution.executors.Cluster`. ``report`` is that of :func:`ray_cluster`."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def run(
        self, function: Callable[..., R], tasks: Iterable[tuple[Any, ...]], *, shared: Sequence[object] = (), cpus: int = 1, gpus: int = 0
    ) -> Generator[R, None, None]:
        """As :meth:`pipeline.execution.executors.Cluster.run`."""
        import ray

        remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_run_task)
        # In a list: Ray would send a bare reference's object with each task
        sent = [ray.put(shared)] if shared else []
        remaining, folder = iter(tasks), str(Path.cwd())
        pending: deque[Any] = deque()
        # Tasks whose results are no longer needed end with the connection. Cancelling them one by one is unreliable (Ray 2.60): a task that is on
        # its way to a worker starts anyway and keeps its CPU, and a second attempt can end this process.
        while True:
            room = TASKS_PER_CPU * max(1, round(sum(machine["CPU"] for machine in self.resources()) / max(1, cpus))) - len(pending)
            pending.extend(remote.remote(folder, function, sent, task) for task in itertools.islice(remaining, max(room, 0)))
            if not pending:
                break
            for timeouts in itertools.count(1):
                if ray.wait([pending[0]], timeout=REPORT_SECONDS)[0]:
                    break
                free = {kind: ray.available_resources().get(kind, 0.0) for kind in ("CPU", "GPU")}  # type: ignore[no-untyped-call]
                self._report(
                    f"A task that needs {cpus} CPUs and {gpus} GPUs has not finished after {timeouts * REPORT_SECONDS:.0f} s. Free on the cluster: "
                    f"{free['CPU']:g} CPUs, {free['GPU']:g} GPUs."
                )
            yield _result(pending[0])
            pending.popleft()

    def resources(self) -> list[dict[str, float]]:
        """As :meth:`pipeline.execution.executors.Cluster.resources`."""
        import ray

        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return [{kind: node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU")} for node in nodes if node["Alive"]]


def _result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CapstreamError):
            raise error.cause from None
        raise
    except (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
    ) as error:
        raise ResourceError(
            f"A worker process died in {RETRIES + 1} attempts at one task, perhaps because memory ran out ({first_line(error)}). Run the command "
            "again with fewer CPUs, or look into Ray's logs: finished parts are kept."
        ) from None


# In a worker process: the shared objects of the latest run, by the name of their reference.
_received: dict[str, Sequence[object]] = {}


def _run_task(folder: str, function: Callable[..., R], sent: Sequence[Any], task: tuple[Any, ...]) -> R:
    """Run a task in a worker process."""
    import ray

    try:
        os.chdir(folder)
    except OSError as error:
        machine = socket.gethostname()
        raise InputError(
            f"{folder}: cannot be used on {machine} ({error.strerror}). Run the command in a folder that all machines of the cluster share."
        ) from None
    shared: Sequence[object] = ()
    for reference in sent:
        if reference.hex() not in _received:
            _received.clear()
            _received[reference.hex()] = ray.get(reference)
        shared = _received[reference.hex()]
    return function(*shared, *task)
