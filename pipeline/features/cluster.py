"""The parts of a feature file, made on the machines of a cluster: a task for some shards, whose process builds the network from its recipe.

How the network is computed is chosen on one of the cluster's own devices, so that the machine that asks needs none of them.
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

from model.encoder import FrozenBackbone, feature_dim
from pipeline.backbone.portable import PortableNetwork
from pipeline.backbone.precision import choose_precision
from pipeline.execution.devices import out_of_memory, prepare_device
from pipeline.execution.executors import Cluster
from pipeline.features.parts import Plan, Task, cache_parts, whole_parts
from shards.errors import InputError

# Shards that a task has at the most: starting to decode costs a second, and a task that dies is done again as a whole.
SHARDS_PER_TASK = 8


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a task of a cluster works with: a kind of device, CPUs (on a CPU as many threads), GPUs, and threads that decode."""

    kind: str
    cpus: int
    gpus: int
    workers: int


def needs_on(cluster: Cluster, device: str) -> Needs:
    """A GPU for each task where the cluster has any; else the CPUs of its smallest machine, and no more than this process would take.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        InputError: There is no such device in the cluster.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--device {device}: on a cluster, give auto, cpu or cuda: each task gets one GPU.")
    machines = cluster.resources()
    with_gpus = [machine for machine in machines if machine["GPU"] >= 1]
    if device == "cuda" and not with_gpus:
        raise InputError("--device cuda: the cluster has no GPU. Take --device cpu, or add a machine that has one.")
    if with_gpus and device != "cpu":
        cpus = int(min(machine["CPU"] // machine["GPU"] for machine in with_gpus))
        return Needs(kind="cuda", cpus=cpus, gpus=1, workers=max(1, cpus))
    with_cpus = [machine["CPU"] for machine in machines if machine["CPU"] >= 1]
    if not with_cpus:
        raise InputError("The cluster has no CPU to work with. Start its machines with --num-cpus of 1 or more.")
    return Needs(kind="cpu", cpus=min(int(min(with_cpus)), torch.get_num_threads()), gpus=0, workers=1)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """How a network is computed on a cluster; workers build the network itself."""

    recipe: PortableNetwork
    details: dict[str, Any]
    notes: tuple[str, ...]
    dim: int


def choose_on_cluster(cluster: Cluster, recipe: PortableNetwork, needs: Needs, *, precision: str, sample: Tensor) -> Chosen:
    """Choose the arithmetic on one of the cluster's own devices; otherwise as :func:`pipeline.backbone.precision.choose_precision`."""
    (chosen,) = cluster.run(_choose, [(precision, sample.numpy())], shared=(recipe, needs), cpus=needs.cpus, gpus=needs.gpus)
    return chosen


def _choose(recipe: PortableNetwork, needs: Needs, precision: str, sample: NDArray[np.uint8]) -> Chosen:
    device = _prepared(needs)
    with out_of_memory():
        arithmetic = choose_precision(recipe.build_exact(), precision=precision, device=device, sample=torch.from_numpy(sample.copy()))
        dim = feature_dim(arithmetic.frozen)
    return Chosen(recipe=recipe.lowered(arithmetic), details=arithmetic.details, notes=arithmetic.notes, dim=dim)


def cache_parts_on_cluster(
    tasks: Sequence[Task], recipe: PortableNetwork, cluster: Cluster, needs: Needs, plan: Plan, advance: Callable[[int], None]
) -> None:
    """Like :func:`cache_parts`, on the machines of a cluster. A process builds the network once, and makes the parts of some shards a task."""
    at_once = sum(max(1, int(machine["GPU"] if needs.gpus else machine["CPU"] // needs.cpus)) for machine in cluster.resources())
    size = max(1, min(SHARDS_PER_TASK, len(tasks) // (4 * at_once)))
    groups = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    results = cluster.run(_make_parts, [(group,) for group in groups], shared=(recipe, needs, plan), cpus=needs.cpus, gpus=needs.gpus)
    with contextlib.closing(results):
        for images in results:
            advance(images)


def _make_parts(recipe: PortableNetwork, needs: Needs, plan: Plan, tasks: Sequence[Task]) -> int:
    """The parts of some shards, in a process of a cluster; those that are there already are left as they are. Returns the number of images."""
    device = _prepared(needs)
    planned = plan.provenance.arithmetic["device"]
    found = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if found != planned:
        raise InputError(f"The cluster has devices of several kinds, {planned} and {found}, whose features differ. Use machines of one kind.")
    missing = [task for task, whole in zip(tasks, whole_parts(plan.parts, tasks, plan.provenance), strict=True) if not whole]
    with tempfile.TemporaryDirectory(prefix="capstream-") as scratch:
        if plan.parts.url is not None:  # the command's own scratch folder is on another machine
            plan = replace(plan, parts=replace(plan.parts, folder=Path(scratch)))
        cache_parts(missing, _network(recipe, device), device, plan, lambda _: None)
    return sum(len(shard.sidecar.samples) for shard, _ in tasks)


def _prepared(needs: Needs) -> torch.device:
    device = torch.device(needs.kind)
    if needs.kind == "cpu":
        torch.set_num_threads(needs.cpus)
    prepare_device(device)
    return device


@functools.lru_cache(maxsize=1)
def _network(recipe: PortableNetwork, device: torch.device) -> FrozenBackbone:
    return recipe.build().to(device)
