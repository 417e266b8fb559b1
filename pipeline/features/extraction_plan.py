"""How a split passes through the network: in which precision, compiled or not, and on this machine's devices or on a cluster."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model.encoder import FrozenBackbone, feature_shape
from pipeline.backbone.backbones import Network
from pipeline.backbone.portable import PortableNetwork, portable_network
from pipeline.backbone.precision import choose_precision, compile_if_worthwhile
from pipeline.execution.devices import out_of_memory
from pipeline.execution.executors import Cluster, default_workers
from pipeline.features.cluster import TaskResources, cache_parts_on_cluster, choose_precision_on_cluster
from pipeline.features.parts import PartSpec, PartTask, cache_parts, cache_parts_on_devices
from shards.dataset import Split


class MakeParts(Protocol):
    """Makes the missing parts of a split."""

    def __call__(self, tasks: Sequence[PartTask], *, spec: PartSpec, advance: Callable[[int], None]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ExtractionPlan:
    """How a split passes through the network.

    Attributes:
        precision: Of the network.
        details: What decides the last bits of the features; recorded in the feature file.
        threads: Of a CPU, which decide the last bits too; None on a GPU.
        shape: (positions, dim) of each view.
        workers: Processes or threads that decode images, for each device.
        make_parts: Runs it.
    """

    precision: str
    details: dict[str, Any]
    threads: int | None
    shape: tuple[int, int]
    workers: int
    make_parts: MakeParts


# A plan depends on the split's size: compiling pays off only for many images.
Planner = Callable[[Split], ExtractionPlan]


def plan_on_devices(
    network: Network,
    exact: FrozenBackbone,
    *,
    precision: str,
    sample: Tensor,
    devices: Sequence[torch.device],
    workers: int | None,
    views_per_pass: int,
    views_per_image: float,
    report: Callable[[str], None],
) -> Planner:
    """Plan for this machine's devices.

    Args:
        network, exact: The network in float32, and what it is.
        precision, sample: As for :func:`pipeline.backbone.precision.choose_precision`.
        workers: Processes that decode, for each device; by default one with a CPU, and an equal share of the cores with each GPU.
        views_per_pass: Views in one forward pass.
        views_per_image: Views of an image that this process makes; fewer than 1 on average if it makes only some of the parts.
    """
    device, on_cpu = devices[0], devices[0].type == "cpu"
    cores_per_device = max(1, default_workers() // len(devices))
    if workers is None:
        workers = 1 if on_cpu else cores_per_device
    portable = portable_network(network, exact) if len(devices) > 1 else None
    with out_of_memory():
        chosen = choose_precision(exact, precision=precision, device=device, sample=sample)
        shape = feature_shape(chosen.frozen)
    for note in chosen.notes:
        report(note)
    threads = None
    if on_cpu:
        threads = torch.get_num_threads() if len(devices) == 1 else cores_per_device

    def plan(split: Split) -> ExtractionPlan:
        computed = chosen
        make_parts: MakeParts
        if portable is None:
            computed = compile_if_worthwhile(chosen, sample=sample, views=int(split.images * views_per_image), views_per_pass=views_per_pass)
            make_parts = functools.partial(cache_parts, frozen=computed.frozen, device=device)
        else:  # a compiled network cannot be sent to another process
            make_parts = functools.partial(cache_parts_on_devices, network=portable.lowered(computed), devices=devices)
        for note in computed.notes[len(chosen.notes) :]:
            report(note)
        return ExtractionPlan(
            precision=computed.precision, details=computed.details, threads=threads, shape=shape, workers=workers, make_parts=make_parts
        )

    return plan


def plan_on_cluster(
    cluster: Cluster, resources: TaskResources, exact: PortableNetwork, *, precision: str, sample: Tensor, report: Callable[[str], None]
) -> Planner:
    """Plan for the tasks of a cluster: the same for every split."""
    chosen = choose_precision_on_cluster(cluster, exact, resources, precision=precision, sample=sample)
    for note in chosen.notes:
        report(note)
    plan = ExtractionPlan(
        precision=chosen.network.precision,
        details=chosen.details,
        threads=resources.cpus if resources.kind == "cpu" else None,
        shape=chosen.shape,
        workers=resources.workers,
        make_parts=functools.partial(cache_parts_on_cluster, network=chosen.network, cluster=cluster, resources=resources),
    )
    return lambda _: plan
