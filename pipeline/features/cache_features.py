"""Shards -> feature files: every image once through the frozen backbone, never again.

A shard is one task, and its result a feature file of its own (a part); the last step joins the parts of a split into one committed
file. A run that was killed goes on behind its last finished part. Batches never cross a shard, so parts are the same whoever made them:
this process, those of other devices, a cluster's, or processes that a batch scheduler started.
"""

import contextlib
import functools
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from model.encoder import FrozenBackbone, feature_dim
from pipeline.backbone.backbones import KEPT_FILE, RANDOM, Network, open_backbone
from pipeline.backbone.portable import PortableNetwork, portable_network
from pipeline.backbone.precision import AGREEMENT_IMAGES, choose_precision, compile_if_worthwhile, pick_precision
from pipeline.execution.array_tasks import ArrayTask, writing
from pipeline.execution.devices import BATCH_SIZES, out_of_memory, pick_devices, prepare_device
from pipeline.execution.executors import Cluster, default_workers
from pipeline.execution.progress import Progress
from pipeline.features.calibration import calibration_batches, sample_images
from pipeline.features.cluster import Needs, cache_parts_on_cluster, choose_on_cluster, needs_on
from pipeline.features.parts import Plan, Task, cache_parts, cache_parts_on_devices, finished_parts, join_parts, part_name, whole_parts
from pipeline.features.previews import ENDING, samples_path, write_samples
from pipeline.features.views import CENTER, view_names
from shards.atomic import exclusive
from shards.errors import DamageError, InputError, MismatchError, OccupiedError, OnError
from shards.features import FeatureFile, Provenance, feature_path, open_features
from shards.manifest import SPLIT_NAME, DatasetFile, Split, library_versions, read_dataset_file
from shards.output import Output, opened_output
from shards.paths import Location
from shards.tar import open_samples

OWN_FILE = re.compile(rf"{SPLIT_NAME.pattern}(\.h5|{re.escape(ENDING)})")
# Of processes that share the work, one finds random weights' statistics, and the others wait for them.
NETWORK_SECONDS = 3600.0


class Run(Protocol):
    """Makes the missing parts of a split."""

    def __call__(self, tasks: Sequence[Task], *, plan: Plan, advance: Callable[[int], None]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How a split is put through the network, and what does it; ``threads`` of a CPU, which decide the last bits too."""

    precision: str
    details: dict[str, Any]
    threads: int | None
    dim: int
    workers: int
    run: Run


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """What one split's pass did; ``images_per_second`` is 0 where the file was there already. ``notes`` name skipped samples.

    Of a share of the work there are ``images`` in its parts, and no file under ``path`` yet: ``committed`` says which.
    """

    split: str
    path: Location
    images: int
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
    splits: Sequence[str] = (),
    backbone: str = "resnet152",
    weights: str | None = None,
    precision: str = "auto",
    views: str = CENTER,
    batch_size: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    on_error: OnError = "fail",
    cluster: Cluster | None = None,
    array_task: ArrayTask | None = None,
    report: Callable[[str], None] = lambda _: None,
    quiet: bool = True,
) -> list[CacheSummary]:
    """Write ``OUT/SPLIT.h5`` for every split, and beside them the weights where they are random.

    Args:
        shards: A shard dataset.
        out: A new or empty folder, or one with feature files of the same network; or such a place in S3.
        splits: Which splits; all by default.
        backbone, weights: As for :func:`pipeline.backbone.backbones.open_backbone`.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``. ``auto`` goes back to fp32 where the faster one does not agree with it.
        views: As for :func:`pipeline.features.views.view_names`.
        batch_size: Views per forward pass; by default what suits the device.
        device: ``auto``, ``cpu``, ``cuda``, or several with commas between them: one process each. On a cluster one of the first three.
        workers: Processes that decode, for each device; by default one beside a CPU, and its share of the cores beside a GPU. Not of a cluster.
        on_error: ``fail`` at a damaged sample, or ``skip`` it.
        cluster: Makes the parts instead of this machine.
        array_task: Make only the parts of these shards of each split, and join nothing.
        report: Is told before the pass what was decided about it.

    Raises:
        InputError: Wrong names, sizes or folders.
        OccupiedError: ``out`` holds something else, or is being written to.
        MismatchError: ``out`` holds features of other shards, of another network, or of other views.
        DamageError: A shard is damaged, or the network gave no finite number; names the sample.
        ResourceError: Weights cannot be downloaded, disk full, not allowed.
    """
    names = view_names(views)
    for option, value in (("--batch-size", batch_size), ("--workers", workers)):
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: must be at least 1.")
    needs = needs_on(cluster, device) if cluster is not None else None
    devices = pick_devices(device if needs is None else "cpu")
    pick_precision(precision, devices[0])
    batch_size = batch_size if batch_size is not None else BATCH_SIZES.get(devices[0].type if needs is None else needs.kind, 32)
    batch_images = max(1, batch_size // len(names))
    dataset = read_dataset_file(shards)
    opened = [open_samples(shards, name, on_error) for name in splits or _in_order(dataset)]
    if not opened:
        raise InputError(f"{shards}: holds no split yet. Run the shard command to its end first.")
    for each in reversed(devices):  # the first one stays the current one
        prepare_device(each)
    with opened_output(out) as output:
        check_feature_folder(output)
        with writing(output.folder, "cache", array_task, "caching features"):
            output.bring([KEPT_FILE, *(name for split in opened for name in _files(split.name))])
            first = _first_with_images(shards, dataset, opened, on_error)
            network, exact = _open_network(output, backbone, weights, dataset.config["resize"], first)
            there = {split.name: _file_there(split, output.folder, network, names, precision) for split in opened}
            if array_task is None:
                _write_samples(output, [s for s in opened if there[s.name] is None or not samples_path(output.folder, s.name).is_file()])

            @functools.cache
            def passes() -> Callable[[Split], Extraction]:
                sample = sample_images(first, exact.preprocessing.crop, AGREEMENT_IMAGES)
                if cluster is not None and needs is not None:
                    return _on_cluster(cluster, needs, portable_network(network, exact), precision, sample, report)
                shared_by = 1 if array_task is None else array_task.num_tasks
                return _here(devices, network, exact, precision, sample, report, workers, batch_images * len(names), len(names) / shared_by)

            summaries = []
            for split in opened:
                done, parts = there[split.name], output.below(f".{split.name}.parts")
                if done is not None:
                    if array_task is None:
                        _discard(parts)  # a run that was killed right behind its end left them
                    summaries.append(_summary(output, split, done.table.images, done.dim, done.provenance, kept=True))
                    continue
                # Whoever made them, and whatever this machine has: parts that are all there only have to be joined.
                finished = finished_parts(parts, split) if array_task is None else None
                images, rate = 0, 0.0
                if finished is None or finished[0].split_digest != split.digest or _differing(finished[0], network, names, precision):
                    way = passes()(split)
                    plan = Plan(
                        parts=parts,
                        provenance=_provenance(split, network, way, names, batch_images),
                        dim=way.dim,
                        batch_images=batch_images,
                        workers=way.workers,
                        threads=cluster is not None,
                    )
                    images, rate = _make_parts(split, plan, way.run, array_task, report, quiet=quiet)
                    finished = plan.provenance, plan.dim
                made, dim = finished
                if array_task is None:
                    images = _join(output, split, parts, dim=dim, provenance=made)
                summaries.append(_summary(output, split, images, dim, made, rate=rate, committed=array_task is None))
            return summaries


def _files(split: str) -> tuple[str, str]:
    """What there is of a split beside its parts."""
    folder = Path()
    return feature_path(folder, split).name, samples_path(folder, split).name


def _open_network(output: Output, backbone: str, weights: str | None, resize: dict[str, Any], first: Split) -> tuple[Network, FrozenBackbone]:
    kept = output.folder / KEPT_FILE
    before = kept.is_file()
    finding = weights == RANDOM and not before
    with exclusive(output.folder, "network", "opening the network", patience=NETWORK_SECONDS) if finding else contextlib.nullcontext():
        opened = open_backbone(backbone=backbone, weights=weights, resize=resize, kept=kept, sample=lambda crop: calibration_batches(first, crop))
        if kept.is_file() and not before:
            output.send(KEPT_FILE)
    return opened


def _write_samples(output: Output, splits: Sequence[Split]) -> None:
    for split in splits:
        write_samples(split, output.folder)
        output.send(samples_path(output.folder, split.name).name)


def _here(
    devices: Sequence[torch.device],
    network: Network,
    exact: FrozenBackbone,
    precision: str,
    sample: Tensor,
    report: Callable[[str], None],
    workers: int | None,
    views_per_pass: int,
    views_per_image: float,
) -> Callable[[Split], Extraction]:
    """How splits are passed through the network on this machine; ``views_per_image`` counts only those that fall to this process."""
    if workers is None:
        workers = 1 if devices[0].type == "cpu" else max(1, default_workers() // len(devices))
    recipe = portable_network(network, exact) if len(devices) > 1 else None
    with out_of_memory():
        chosen = choose_precision(exact, precision=precision, device=devices[0], sample=sample)
        dim = feature_dim(chosen.frozen)
    for note in chosen.notes:
        report(note)
    threads = None
    if devices[0].type == "cpu":
        threads = torch.get_num_threads() if len(devices) == 1 else max(1, default_workers() // len(devices))

    def way(split: Split) -> Extraction:
        arithmetic = chosen
        run: Run
        if recipe is None:
            arithmetic = compile_if_worthwhile(chosen, sample=sample, views=int(split.images * views_per_image), views_per_pass=views_per_pass)
            run = functools.partial(cache_parts, frozen=arithmetic.frozen, device=devices[0])
        else:  # a compiled network cannot be sent to another process
            run = functools.partial(cache_parts_on_devices, recipe=recipe.lowered(arithmetic), devices=devices)
        for note in arithmetic.notes[len(chosen.notes) :]:
            report(note)
        return Extraction(precision=arithmetic.precision, details=arithmetic.details, threads=threads, dim=dim, workers=workers, run=run)

    return way


def _on_cluster(
    cluster: Cluster, needs: Needs, exact: PortableNetwork, precision: str, sample: Tensor, report: Callable[[str], None]
) -> Callable[[Split], Extraction]:
    """The same on a cluster, where all splits are passed through the network in one way."""
    chosen = choose_on_cluster(cluster, exact, needs, precision=precision, sample=sample)
    for note in chosen.notes:
        report(note)
    threads = needs.cpus if needs.kind == "cpu" else None
    run = functools.partial(cache_parts_on_cluster, recipe=chosen.recipe, cluster=cluster, needs=needs)
    way = Extraction(precision=chosen.recipe.precision, details=chosen.details, threads=threads, dim=chosen.dim, workers=needs.workers, run=run)
    return lambda _: way


def _first_with_images(shards: Path, dataset: DatasetFile, opened: Sequence[Split], on_error: OnError) -> Split:
    """The split whose photographs calibrate and judge the network, the same whichever splits are cached: train, or the first that has any."""
    by_name = {split.name: split for split in opened}
    for name in _in_order(dataset):
        with contextlib.suppress(DamageError):  # another split's tars may be gone by now
            split = by_name[name] if name in by_name else open_samples(shards, name, on_error)
            if split.images:
                return split
    return opened[0]


def _in_order(dataset: DatasetFile) -> list[str]:
    return sorted(dataset.splits, key=lambda name: (name != "train", name))


def _provenance(split: Split, network: Network, way: Extraction, names: tuple[str, ...], batch_images: int) -> Provenance:
    machine: dict[str, Any] = {"images_per_pass": batch_images}
    if way.threads is not None:
        machine["threads"] = way.threads
    return Provenance(
        backbone=network.backbone,
        weights=network.weights,
        weights_sha256=network.weights_sha256,
        preprocessing=network.content()["preprocessing"],
        views=names,
        precision=way.precision,
        arithmetic={**way.details, **machine},
        split=split.name,
        split_digest=split.digest,
        versions=library_versions("torch", "torchvision", "timm", "h5py"),
    )


def check_feature_folder(output: Output, *also: str) -> None:
    """Refuse an output folder that holds something else than feature files, what stands beside them, and files named ``also``.

    Raises:
        OccupiedError: It does; names one such file.
    """
    out = output.folder
    if out.exists() and not out.is_dir():
        raise OccupiedError(f"{out}: is a file. Choose a new or empty folder for --out.")
    strangers = [n for n in output.names() if not n.startswith(".") and n not in (KEPT_FILE, *also) and not OWN_FILE.fullmatch(n)]
    if strangers:
        raise OccupiedError(f"{out}: holds something else than feature files ({strangers[0]}). Choose a new or empty folder for --out.")


def _file_there(split: Split, out: Path, network: Network, names: tuple[str, ...], precision: str) -> FeatureFile | None:
    """The split's feature file if there is one; another one than is asked for is refused."""
    target = feature_path(out, split.name)
    if not target.is_file():
        return None
    file = open_features(target)
    check_made_from(file, split)
    for what, holds, asked in _differing(file.provenance, network, names, precision):
        raise MismatchError(f"{target}: holds features with another {what}: {holds} there, {asked} asked for. Choose another --out.")
    return file


def _differing(found: Provenance, network: Network, names: tuple[str, ...], precision: str) -> list[tuple[str, str, str]]:
    """In what features differ from those that are asked for: what it is, there, asked for."""
    sides = [
        ("backbone", found.backbone, network.backbone),
        ("digest of the weights", found.weights_sha256, network.weights_sha256),
        ("preprocessing", f"{found.preprocessing}", f"{network.content()['preprocessing']}"),
        ("views", ", ".join(found.views), ", ".join(names)),
        ("precision", found.precision, found.precision if precision == "auto" else precision),
    ]
    return [side for side in sides if side[1] != side[2]]


def _summary(
    output: Output, split: Split, images: int, dim: int, made: Provenance, *, rate: float = 0.0, kept: bool = False, committed: bool = True
) -> CacheSummary:
    return CacheSummary(
        split=split.name,
        path=output.at(feature_path(output.folder, split.name).name),
        images=images,
        dim=dim,
        views=len(made.views),
        precision=made.precision,
        kept=kept,
        notes=tuple(filter(None, [split.skipped_note()])),
        images_per_second=rate,
        committed=committed,
    )


def _make_parts(split: Split, plan: Plan, run: Run, array_task: ArrayTask | None, report: Callable[[str], None], *, quiet: bool) -> tuple[int, float]:
    """Make the parts that are missing; returns the number of images in all that fall to this process, and how many it did a second."""
    every = [(shard, part_name(index)) for index, shard in enumerate(split.shards)]
    own = every if array_task is None else array_task.of(every)
    total = sum(len(shard.sidecar.samples) for shard, _ in own)
    with Progress(f"Caching {split.name}", total=total, unit="images", quiet=quiet) as progress:
        names = set(plan.parts.names())
        there = [task for task in own if task[1] in names]
        kept = set()
        for (shard, name), whole in zip(there, whole_parts(plan.parts, there, plan.provenance), strict=True):
            if whole:
                kept.add(name)
                progress.advance(len(shard.sidecar.samples), note="kept from the last run")
        tasks = [task for task in own if task[1] not in kept]
        again = len(there) - len(kept)
        if again:
            place = plan.parts.at("")
            report(f"{place}: {again} parts of an earlier run are damaged or were made in another way; they are made again.")
        before, progress.started = progress.done, time.monotonic()
        if tasks:
            run(tasks, plan=plan, advance=progress.advance)
        return total, (progress.done - before) / max(time.monotonic() - progress.started, 1e-9)


def _join(output: Output, split: Split, parts: Output, *, dim: int, provenance: Provenance) -> int:
    target = feature_path(output.folder, split.name)
    images = join_parts(target, split, parts, dim=dim, provenance=provenance)
    output.send(target.name)
    _discard(parts)
    return images


def _discard(parts: Output) -> None:
    """Remove what has been joined."""
    for _ in parts.each(parts.remove, parts.names() if parts.url is not None else ()):
        pass
    shutil.rmtree(parts.folder, ignore_errors=True)


def check_made_from(features: FeatureFile, split: Split) -> None:
    """Refuse a feature file of other shards.

    Raises:
        MismatchError: Names both digests.
    """
    if features.provenance.split_digest != split.digest:
        raise MismatchError(
            f"{features.path}: was made from shards with digest {features.provenance.split_digest}; split {split.name!r} of "
            f"{split.folder} has {split.digest}. Delete it, or choose another --out, and cache again."
        )
