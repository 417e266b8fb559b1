"""Shards -> feature files: every image passes through the frozen backbone once, and never again.

Each shard is a task whose result is a feature file of its own (a part); the last step joins the parts of a split into one committed file.
A run that was killed resumes after its last finished part. Batches never cross a shard, so the parts are the same whoever makes them: this
process, one process per device, a cluster, or the tasks of a batch scheduler's job array.
"""

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from model.encoder import FrozenBackbone, feature_shape, mean_is_pooled
from model.feature_layout import POOLED, grid_side
from pipeline.backbone.backbones import KEPT_FILE, RANDOM, Network, open_backbone
from pipeline.backbone.portable import portable_network
from pipeline.backbone.precision import AGREEMENT_IMAGES, pick_precision
from pipeline.execution.array_tasks import ArrayTask, writer_lock
from pipeline.execution.devices import images_per_pass, pick_devices, prepare_device
from pipeline.execution.executors import Cluster
from pipeline.execution.progress import Progress
from pipeline.features.calibration import calibration_batches, evenly_spaced_images, reference_split, train_first
from pipeline.features.cluster import TaskResources, task_resources
from pipeline.features.disk_space import check_space, split_bytes
from pipeline.features.extraction_plan import ExtractionPlan, MakeParts, Planner, plan_on_cluster, plan_on_devices
from pipeline.features.feature_folder import check_feature_folder, differences, existing_features, files_of_split
from pipeline.features.parts import PartSpec, finished_parts, join_parts, part_name, whole_parts
from pipeline.features.previews import previews_path, write_previews
from pipeline.features.views import CENTER, view_names
from shards.atomic import hold_lock
from shards.dataset import Split, read_dataset_file
from shards.errors import InputError, OnError, SettingsError
from shards.features import FeatureFile, Provenance, feature_path
from shards.output import Output, open_output
from shards.paths import Location
from shards.tar import open_readable_split
from shards.versions import library_versions

# Of several processes, one calibrates random weights while the others wait.
NETWORK_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What to cache, with which network, on what.

    Attributes:
        splits: Which splits; all by default.
        backbone, weights: As for :func:`pipeline.backbone.backbones.open_backbone`.
        layout: ``pooled``, ``grid`` or ``grid:N``; see :mod:`model.feature_layout`.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``. ``auto`` falls back to fp32 where the faster one does not agree with it.
        views: As for :func:`pipeline.features.views.view_names`.
        batch_size: Views per forward pass; by default what suits the device.
        device: ``auto``, ``cpu``, ``cuda``, or several separated by commas: one process each. On a cluster only the first three.
        workers: Processes that decode, for each device; by default one with a CPU, and an equal share of the cores with each GPU. Not used
            on a cluster.
        on_error: ``fail`` at a damaged sample, or ``skip`` it.

    Raises:
        InputError: An impossible number.
    """

    splits: Sequence[str] = ()
    backbone: str = "resnet152"
    weights: str | None = None
    layout: str = POOLED
    precision: str = "auto"
    views: str = CENTER
    batch_size: int | None = None
    device: str = "auto"
    workers: int | None = None
    on_error: OnError = "fail"

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("workers", self.workers)):
            if value is not None and value < 1:
                raise SettingsError(f"`{name}` {value}: must be at least 1.")
        try:
            if self.layout != POOLED:
                grid_side(self.layout)
        except ValueError as error:
            raise SettingsError(f"`features`: {error}.") from None


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """What was done for one split.

    Attributes:
        path: Its feature file.
        images: In the file; of an array task, in its parts.
        kept: Whether the file was complete already.
        notes: A line about skipped samples, if there are any.
        images_per_second: 0 if nothing was computed.
        committed: Whether ``path`` exists; an array task only makes parts.
    """

    split: str
    path: Location
    images: int
    positions: int
    dim: int
    views: int
    precision: str
    kept: bool
    notes: tuple[str, ...]
    images_per_second: float
    committed: bool


def cache_features(
    *,
    shards: Path,
    out: Location,
    config: CacheConfig,
    cluster: Cluster | None = None,
    array_task: ArrayTask | None = None,
    report: Callable[[str], None] = lambda _: None,
    quiet: bool = True,
) -> list[CacheSummary]:
    """Write ``OUT/SPLIT.h5`` for every split, and the weights next to them if they are random.

    Args:
        shards: A shard dataset.
        out: A new or empty folder, or one with feature files of the same network; or a place in S3.
        cluster: Makes the parts instead of this machine.
        array_task: Make only the parts of this array task, and join nothing.
        report: Receives a line for each decision, before the pass begins.

    Raises:
        InputError: Wrong names, sizes or folders.
        OccupiedError: ``out`` holds something else, or is being written to.
        MismatchError: ``out`` holds features of other shards, of another network, or of other views.
        DamageError: A shard is damaged, or the network's features contain NaN or inf; names the sample.
        ResourceError: Weights cannot be downloaded, too little disk space for the features, not allowed.
    """
    machine = _Machine.of(config.device, cluster)
    pick_precision(config.precision, machine.devices[0])
    views = view_names(config.views)
    batch_images = max(1, (config.batch_size or images_per_pass(torch.device(machine.kind))) // len(views))
    dataset = read_dataset_file(shards)
    splits = [open_readable_split(shards, name, config.on_error) for name in config.splits or train_first(dataset)]
    if not splits:
        raise InputError(f"{shards}: holds no complete split. Run the shard command to its end first.")
    for device in reversed(machine.devices):  # the first one stays the current device
        prepare_device(device)
    with open_output(out) as output:
        check_feature_folder(output)
        with writer_lock(output.folder, "cache", array_task, "caching features"):
            output.fetch([KEPT_FILE, *(name for split in splits for name in files_of_split(split.name))])
            reference = reference_split(shards, dataset, splits, config.on_error)
            network, exact = _open_network(output, config, dataset.config["resize"], reference)
            job = _Job(
                output=output,
                network=network,
                views=views,
                precision=config.precision,
                batch_images=batch_images,
                plan=_planner(network, exact, reference, config, machine, batch_images * len(views), array_task, report),
                shape=functools.partial(feature_shape, exact),
                mean_is_pooled=functools.cache(functools.partial(mean_is_pooled, exact)),
                decode_in_threads=cluster is not None,
                array_task=array_task,
                report=report,
                quiet=quiet,
            )
            return _cache_splits(job, splits)


@dataclass(frozen=True, kw_only=True)
class _Machine:
    """What computes: devices of this machine, or the tasks of a cluster, for which this machine needs no more than its CPU."""

    devices: Sequence[torch.device]
    cluster: Cluster | None
    resources: TaskResources | None

    @classmethod
    def of(cls, device: str, cluster: Cluster | None) -> Self:
        resources = task_resources(cluster, device) if cluster is not None else None
        return cls(devices=pick_devices(device if resources is None else "cpu"), cluster=cluster, resources=resources)

    @property
    def kind(self) -> str:
        return self.devices[0].type if self.resources is None else self.resources.kind


def _planner(
    network: Network,
    exact: FrozenBackbone,
    reference: Split,
    config: CacheConfig,
    machine: _Machine,
    views_per_pass: int,
    array_task: ArrayTask | None,
    report: Callable[[str], None],
) -> Planner:
    """Chooses the precision when the first split asks, so that a run with nothing to compute is done at once."""

    @functools.cache
    def chosen() -> Planner:
        sample = evenly_spaced_images(reference, exact.preprocessing.crop, AGREEMENT_IMAGES)
        if machine.cluster is not None and machine.resources is not None:
            portable = portable_network(network, exact)
            return plan_on_cluster(machine.cluster, machine.resources, portable, precision=config.precision, sample=sample, report=report)
        return plan_on_devices(
            network,
            exact,
            precision=config.precision,
            sample=sample,
            devices=machine.devices,
            workers=config.workers,
            views_per_pass=views_per_pass,
            views_per_image=len(view_names(config.views)) / (array_task.num_tasks if array_task is not None else 1),
            report=report,
        )

    def plan(split: Split) -> ExtractionPlan:
        return chosen()(split)

    return plan


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What caching each split needs; ``plan`` chooses the precision when it is first called, and ``shape`` and ``mean_is_pooled`` run the network."""

    output: Output
    network: Network
    views: tuple[str, ...]
    precision: str
    batch_images: int
    plan: Planner
    shape: Callable[[], tuple[int, int]]
    mean_is_pooled: Callable[[], bool]
    decode_in_threads: bool
    array_task: ArrayTask | None
    report: Callable[[str], None]
    quiet: bool


def _cache_splits(job: _Job, splits: Sequence[Split]) -> list[CacheSummary]:
    folder = job.output.folder
    # All of them before any work: a mismatch in the last split is an error at once.
    existing = {split.name: existing_features(split, folder, job.network, job.views, job.precision) for split in splits}
    missing = [split for split in splits if existing[split.name] is None]
    if missing:
        views, shape = len(job.views), job.shape()
        planned = [split_bytes(split, _parts(job, split), views=views, shape=shape, array_task=job.array_task) for split in missing]
        check_space(job.output, planned, job.report)
    if job.array_task is None:
        for split in splits:
            if existing[split.name] is None or not previews_path(folder, split.name).is_file():
                write_previews(split, folder)
                job.output.upload(previews_path(folder, split.name).name)
    return [_cache_split(job, split, existing[split.name]) for split in splits]


def _cache_split(job: _Job, split: Split, existing: FeatureFile | None) -> CacheSummary:
    """Make a split's parts where they are missing, and join them, unless the file is complete already."""
    parts = _parts(job, split)
    joining = job.array_task is None
    if existing is not None:
        if joining:
            _discard(parts)  # left by a run that was killed right after joining
        return _summary(job, split, existing.table.images, existing.features.shape[2:], existing.provenance, kept=True)
    # If all parts exist, whoever made them and whatever this machine has, they only have to be joined.
    finished = finished_parts(parts, split) if joining else None
    images, rate = 0, 0.0
    if (
        finished is None
        or finished[0].split_digest != split.digest
        or differences(finished[0], job.network, views=job.views, precision=job.precision)
    ):
        plan = job.plan(split)
        spec = PartSpec(
            parts=parts,
            provenance=_provenance(job, split, plan),
            shape=plan.shape,
            batch_images=job.batch_images,
            workers=plan.workers,
            threads=job.decode_in_threads,
        )
        images, rate = _make_missing_parts(job, split, spec, plan.make_parts)
        finished = spec.provenance, plan.shape
    provenance, shape = finished
    if joining:
        target = feature_path(job.output.folder, split.name)
        images = join_parts(target, split, parts, shape=shape, provenance=provenance)
        job.output.upload(target.name)
        _discard(parts)
    return _summary(job, split, images, shape, provenance, rate=rate, committed=joining)


def _parts(job: _Job, split: Split) -> Output:
    return job.output.subfolder(f".{split.name}.parts")


def _make_missing_parts(job: _Job, split: Split, spec: PartSpec, make_parts: MakeParts) -> tuple[int, float]:
    """Make the parts that are missing; returns the number of images in all parts of this process, and how many it computed a second."""
    every = [(shard, part_name(index)) for index, shard in enumerate(split.shards)]
    own = every if job.array_task is None else job.array_task.select(every)
    total = sum(len(shard.sidecar.samples) for shard, _ in own)
    with Progress(f"Caching {split.name}", total=total, unit="images", quiet=job.quiet) as progress:
        names = set(spec.parts.names())
        found = [task for task in own if task[1] in names]
        kept = set()
        for (shard, name), whole in zip(found, whole_parts(spec.parts, found, spec.provenance), strict=True):
            if whole:
                kept.add(name)
                progress.advance(len(shard.sidecar.samples), note="kept from the last run")
        tasks = [task for task in own if task[1] not in kept]
        outdated = len(found) - len(kept)
        if outdated:
            job.report(f"{spec.parts.location('')}: {outdated} parts of an earlier run are damaged or were made in another way; they are made again.")
        before, progress.started = progress.done, time.monotonic()
        if tasks:
            make_parts(tasks, spec=spec, advance=progress.advance)
        return total, (progress.done - before) / max(time.monotonic() - progress.started, 1e-9)


def _open_network(output: Output, config: CacheConfig, resize: dict[str, Any], reference: Split) -> tuple[Network, FrozenBackbone]:
    kept = output.folder / KEPT_FILE
    before = kept.is_file()
    calibrating = config.weights == RANDOM and not before
    with hold_lock(output.folder, "network", "opening the network", wait_seconds=NETWORK_SECONDS) if calibrating else contextlib.nullcontext():
        opened = open_backbone(
            backbone=config.backbone,
            weights=config.weights,
            layout=config.layout,
            resize=resize,
            kept=kept,
            sample=lambda crop: calibration_batches(reference, crop),
        )
        if kept.is_file() and not before:
            output.upload(KEPT_FILE)
    return opened


def _provenance(job: _Job, split: Split, plan: ExtractionPlan) -> Provenance:
    machine: dict[str, Any] = {"images_per_pass": job.batch_images}
    if plan.threads is not None:
        machine["threads"] = plan.threads
    return Provenance(
        backbone=job.network.backbone,
        weights=job.network.weights,
        weights_sha256=job.network.weights_sha256,
        preprocessing=job.network.content()["preprocessing"],
        layout=job.network.layout,
        mean_is_pooled=job.mean_is_pooled(),
        views=job.views,
        precision=plan.precision,
        arithmetic={**plan.details, **machine},
        split=split.name,
        language=split.language,
        split_digest=split.digest,
        versions=library_versions("torch", "torchvision", "timm", "h5py"),
    )


def _summary(
    job: _Job,
    split: Split,
    images: int,
    shape: tuple[int, ...],
    provenance: Provenance,
    *,
    rate: float = 0.0,
    kept: bool = False,
    committed: bool = True,
) -> CacheSummary:
    return CacheSummary(
        split=split.name,
        path=job.output.location(feature_path(job.output.folder, split.name).name),
        images=images,
        positions=shape[0],
        dim=shape[1],
        views=len(provenance.views),
        precision=provenance.precision,
        kept=kept,
        notes=tuple(filter(None, [split.skipped_note()])),
        images_per_second=rate,
        committed=committed,
    )


def _discard(parts: Output) -> None:
    """Remove parts that have been joined."""
    for _ in parts.map(parts.remove, parts.names() if parts.url is not None else ()):
        pass
    shutil.rmtree(parts.folder, ignore_errors=True)
