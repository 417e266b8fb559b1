"""Tasks on a Ray cluster, or on a Ray of this machine's own (https://docs.ray.io/en/latest/ray-core/walkthrough.html).

The code travels with the job, so that all machines run this checkout; the packages that it needs have to be installed there. A task whose
process dies is done again by Ray. Ray is imported only here, and only once it is asked for.
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
from shards.errors import CapstreamError, InputError, ResourceError, first_line

R = TypeVar("R")
ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "model", "shards")
# A task whose process dies is done again so many times.
RETRIES = 3
# Tasks in flight for each CPU: a million shards are not a million tasks at once.
AHEAD = 4
CONNECT_SECONDS = 10.0
# After so long a wait for one task there is a line about it: Ray itself waits without a word for what others hold.
PATIENCE_SECONDS = 120.0
# Results are small, and what is shared is sent once; by default Ray would take a third of the memory.
OBJECT_STORE_BYTES = 2 << 30


@contextlib.contextmanager
def ray_cluster(
    address: str | None = None,
    *,
    cpus: int | None = None,
    object_store_bytes: int = OBJECT_STORE_BYTES,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator["RayCluster"]:
    """Connect to a Ray cluster, or start a Ray on this machine; end or leave it at the end, with all that still runs.

    Args:
        address: Of the cluster's head, ``host:6379``, or ``auto`` for the one that this machine belongs to; None starts one here.
        cpus: How many CPUs the one here has, by default all cores.
        object_store_bytes: Memory that the one here keeps for what tasks share.
        report: Is told when a task has been waited for long, which may be for want of free CPUs or GPUs.

    Raises:
        InputError: Ray is not installed, or that is no address.
        ResourceError: There is no cluster at the address.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its new default, of which it would speak
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--executor ray: needs Ray ({error}). Install it with: pip install '.[ray]'") from None
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
                f"--ray-address {address}: cannot be used ({first_line(error)}). Check it with: ray status --address {address}"
            ) from None
    try:
        yield RayCluster(report)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Ray itself would try for a minute, and print what it thinks."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise InputError(f"--ray-address {address}: give the cluster's head like host:6379, or auto on a machine that belongs to the cluster.")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"--ray-address {address}: nothing answers there ({error}). Start the cluster with: ray start --head --port {port}, or leave the "
            "option away for a Ray of this machine's own."
        ) from None


class RayCluster:
    """The Ray that this process is connected to, as a :class:`pipeline.execution.executors.Cluster`; ``report`` as for :func:`ray_cluster`."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def run(
        self, function: Callable[..., R], tasks: Iterable[tuple[Any, ...]], *, shared: Sequence[object] = (), cpus: int = 1, gpus: int = 0
    ) -> Generator[R, None, None]:
        """As :meth:`pipeline.execution.executors.Cluster.run`."""
        import ray

        remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_do)
        # In a list, or Ray would send the object with each task
        sent = [ray.put(shared)] if shared else []
        remaining, folder = iter(tasks), str(Path.cwd())
        waiting: deque[Any] = deque()
        # Tasks that nobody waits for any more end with the connection. Cancelling them one by one is not to be relied upon (Ray 2.60): one that
        # is on its way to a worker begins all the same and keeps its CPU, and a second try can end this process.
        while True:
            room = AHEAD * max(1, round(sum(machine["CPU"] for machine in self.resources()) / max(1, cpus))) - len(waiting)
            waiting.extend(remote.remote(folder, function, sent, task) for task in itertools.islice(remaining, max(room, 0)))
            if not waiting:
                break
            for waits in itertools.count(1):
                if ray.wait([waiting[0]], timeout=PATIENCE_SECONDS)[0]:
                    break
                free = {kind: ray.available_resources().get(kind, 0.0) for kind in ("CPU", "GPU")}  # type: ignore[no-untyped-call]
                self._report(
                    f"A task that needs {cpus} CPUs and {gpus} GPUs has not ended for {waits * PATIENCE_SECONDS:.0f} s; free on the cluster: "
                    f"{free['CPU']:g} CPUs, {free['GPU']:g} GPUs."
                )
            yield _result(waiting[0])
            waiting.popleft()

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
            f"A worker process died {RETRIES + 1} times over one task, perhaps for memory ({first_line(error)}). Run the command again with fewer "
            "CPUs, or look into Ray's logs: finished parts are kept."
        ) from None


# In a worker process: what the tasks of the newest run share, by the name of the reference to it.
_received: dict[str, Sequence[object]] = {}


def _do(folder: str, function: Callable[..., R], sent: Sequence[Any], task: tuple[Any, ...]) -> R:
    """A task, in a worker process."""
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
