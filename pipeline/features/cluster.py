"""Parts of a feature file, made on the machines of a cluster. A task makes the parts of some shards; its process builds the network itself.

The precision is chosen on one of the cluster's devices, so that the machine that gives out the tasks needs none.
"""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.encoder import FrozenBackbone, feature_shape
from pipeline.backbone.portable import PortableNetwork
from pipeline.backbone.precision import choose_precision
from pipeline.execution.devices import out_of_memory, prepare_device
from pipeline.execution.executors import Cluster
from pipeline.features.parts import PartSpec, PartTask, cache_parts, whole_parts
from shards.errors import InputError, SettingsError

# Starting to decode costs a second, but a task that dies has to be repeated from its start.
SHARDS_PER_TASK = 8


@dataclass(frozen=True, kw_only=True)
class TaskResources:
    """What a task of a cluster gets.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        cpus: CPUs; without a GPU also the number of torch's threads.
        workers: Threads that decode images.
    """

    kind: str
    cpus: int
    gpus: int
    workers: int


def task_resources(cluster: Cluster, device: str) -> TaskResources:
    """One GPU per task if the cluster has any; else the CPUs of its smallest machine, but no more than this process would use.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        InputError: The cluster has no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise SettingsError(f"`device` {device}: on a cluster, choose auto, cpu or cuda; each task gets one GPU.")
    machines = cluster.resources()
    with_gpus = [machine for machine in machines if machine["GPU"] >= 1]
    if device == "cuda" and not with_gpus:
        raise InputError("`device` cuda: the cluster has no GPU. Choose cpu, or add a machine with a GPU.")
    if with_gpus and device != "cpu":
        cpus = int(min(machine["CPU"] // machine["GPU"] for machine in with_gpus))
        return TaskResources(kind="cuda", cpus=cpus, gpus=1, workers=max(1, cpus))
    with_cpus = [machine["CPU"] for machine in machines if machine["CPU"] >= 1]
    if not with_cpus:
        raise InputError("The cluster has no CPUs. Start its machines with ray start --num-cpus=N, N at least 1.")
    return TaskResources(kind="cpu", cpus=min(int(min(with_cpus)), torch.get_num_threads()), gpus=0, workers=1)


@dataclass(frozen=True, kw_only=True)
class ChosenPrecision:
    """How a network is computed on a cluster, and the network as tasks build it."""

    network: PortableNetwork
    details: dict[str, Any]
    notes: tuple[str, ...]
    shape: tuple[int, int]


def choose_precision_on_cluster(
    cluster: Cluster, network: PortableNetwork, resources: TaskResources, *, precision: str, sample: Tensor
) -> ChosenPrecision:
    """Choose the precision on one of the cluster's devices; otherwise as :func:`pipeline.backbone.precision.choose_precision`."""
    (chosen,) = cluster.run(_choose, [(precision, sample.numpy())], shared=(network, resources), cpus=resources.cpus, gpus=resources.gpus)
    return chosen


def _choose(network: PortableNetwork, resources: TaskResources, precision: str, sample: NDArray[np.uint8]) -> ChosenPrecision:
    device = _prepared(resources)
    with out_of_memory():
        computed = choose_precision(network.build_exact(), precision=precision, device=device, sample=torch.from_numpy(sample.copy()))
        shape = feature_shape(computed.frozen)
    return ChosenPrecision(network=network.lowered(computed), details=computed.details, notes=computed.notes, shape=shape)


def cache_parts_on_cluster(
    tasks: Sequence[PartTask], network: PortableNetwork, cluster: Cluster, resources: TaskResources, spec: PartSpec, advance: Callable[[int], None]
) -> None:
    """Like :func:`cache_parts`, on the machines of a cluster. Each process builds the network once; each task makes the parts of some shards."""
    at_once = sum(max(1, int(machine["GPU"] if resources.gpus else machine["CPU"] // resources.cpus)) for machine in cluster.resources())
    size = max(1, min(SHARDS_PER_TASK, len(tasks) // (4 * at_once)))
    groups = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    results = cluster.run(_make_parts, [(group,) for group in groups], shared=(network, resources, spec), cpus=resources.cpus, gpus=resources.gpus)
    with contextlib.closing(results):
        for images in results:
            advance(images)


def _make_parts(network: PortableNetwork, resources: TaskResources, spec: PartSpec, tasks: Sequence[PartTask]) -> int:
    """Make the missing parts of some shards in a process of a cluster. Returns the number of images in all of them."""
    device = _prepared(resources)
    planned = spec.provenance.arithmetic["device"]
    found = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if found != planned:
        raise InputError(f"The cluster has devices of several kinds, {planned} and {found}, whose features differ. Use one kind only.")
    missing = [task for task, whole in zip(tasks, whole_parts(spec.parts, tasks, spec.provenance), strict=True) if not whole]
    with tempfile.TemporaryDirectory(prefix="capstream-") as scratch:
        if spec.parts.url is not None:  # the command's own scratch folder is on another machine
            spec = replace(spec, parts=replace(spec.parts, folder=Path(scratch)))
        cache_parts(missing, _built(network, device), device, spec, lambda _: None)
    return sum(len(shard.sidecar.samples) for shard, _ in tasks)


def _prepared(resources: TaskResources) -> torch.device:
    device = torch.device(resources.kind)
    if resources.kind == "cpu":
        torch.set_num_threads(resources.cpus)
    prepare_device(device)
    return device


@functools.lru_cache(maxsize=1)
def _built(network: PortableNetwork, device: torch.device) -> FrozenBackbone:
    return network.build().to(device)
