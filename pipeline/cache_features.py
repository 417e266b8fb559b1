"""Shards -> feature files: every image once through the frozen backbone, never again.

A shard is one task, and its result a feature file of its own (a part); the last step joins the parts of a split into one committed
file. A run that was killed goes on behind its last finished part. Batches never cross a shard, so parts are the same whoever made them.
"""

import contextlib
import functools
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from model.encoder import backbone_state, feature_dim
from pipeline.arithmetic import Arithmetic, choose_arithmetic, compile_where_it_pays, pick_precision, prepare_device
from pipeline.backbones import KEPT_FILE, Network, open_backbone, pick_devices
from pipeline.executors import default_workers
from pipeline.feature_parts import Plan, Recipe, Task, cache_parts, cache_parts_on_devices, out_of_memory, part_is_whole
from pipeline.pixels import decode_into
from pipeline.progress import Progress
from pipeline.samples import ENDING, samples_path, write_samples
from pipeline.views import CENTER, view_names
from shards.atomic import disk_errors, exclusive
from shards.errors import DamageError, InputError, MismatchError, OccupiedError
from shards.features import FeatureFile, Provenance, feature_path, open_features, write_features
from shards.manifest import SPLIT_NAME, DatasetFile, Sample, Shard, Split, library_versions, read_dataset_file
from shards.tar import OnError, open_samples

CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64
# Half of them correct the network of lower precision, the others judge it.
AGREEMENT_IMAGES = 32
OWN_FILE = re.compile(rf"{SPLIT_NAME.pattern}(\.h5|{re.escape(ENDING)})")
BATCH_SIZES = {"cpu": 32, "cuda": 256}


class Run(Protocol):
    """Makes the missing parts of a split."""

    def __call__(self, tasks: Sequence[Task], *, plan: Plan, advance: Callable[[int], None]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """What one split's pass did; ``images_per_second`` is 0 where the file was there already. ``notes`` name skipped samples."""

    split: str
    path: Path
    images: int
    dim: int
    views: int
    precision: str
    kept: bool
    notes: tuple[str, ...]
    images_per_second: float


def cache_features(
    *,
    shards: Path,
    out: Path,
    splits: Sequence[str] = (),
    backbone: str = "resnet152",
    weights: str | None = None,
    precision: str = "auto",
    views: str = CENTER,
    batch_size: int | None = None,
    device: str = "auto",
    workers: int | None = None,
    on_error: OnError = "fail",
    report: Callable[[str], None] = lambda _: None,
    quiet: bool = True,
) -> list[CacheSummary]:
    """Write ``OUT/SPLIT.h5`` for every split, and beside them the weights where they are random.

    Args:
        shards: A shard dataset.
        out: A new or empty folder, or one with feature files of the same network.
        splits: Which splits; all by default.
        backbone, weights: As for :func:`pipeline.backbones.open_backbone`.
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``. ``auto`` goes back to fp32 where the faster one does not agree with it.
        views: As for :func:`pipeline.views.view_names`.
        batch_size: Views per forward pass; by default what suits the device.
        device: ``auto``, ``cpu``, ``cuda``, or several with commas between them: one process each.
        workers: Processes that decode, for each device; by default one beside a CPU, and its share of the cores beside a GPU.
        on_error: ``fail`` at a damaged sample, or ``skip`` it.
        report: Is told before the pass what was decided about it.

    Raises:
        InputError: Wrong names, sizes or folders.
        OccupiedError: ``out`` holds something else, or is being written to.
        MismatchError: ``out`` holds features of other shards, of another network, or of other views.
        DamageError: A shard is damaged, or the network gave no finite number; names the sample.
        ResourceError: Weights cannot be downloaded, disk full, not allowed.
    """
    names = view_names(views)
    devices = pick_devices(device)
    pick_precision(precision, devices[0])
    batch_size = batch_size if batch_size is not None else BATCH_SIZES.get(devices[0].type, 32)
    if workers is None:
        workers = 1 if devices[0].type == "cpu" else max(1, default_workers() // len(devices))
    for option, value in (("--batch-size", batch_size), ("--workers", workers)):
        if value < 1:
            raise InputError(f"{option} {value}: must be at least 1.")
    batch_images = max(1, batch_size // len(names))
    dataset = read_dataset_file(shards)
    opened = [open_samples(shards, name, on_error) for name in splits or _in_order(dataset)]
    if not opened:
        raise InputError(f"{shards}: holds no split yet. Run the shard command to its end first.")
    check_feature_folder(out)
    for each in reversed(devices):  # the first one stays the current one
        prepare_device(each)
    with exclusive(out, "cache", "caching features"):
        first = _first_with_images(shards, dataset, opened, on_error)
        network, exact = open_backbone(
            backbone=backbone,
            weights=weights,
            resize=dataset.config["resize"],
            kept=out / KEPT_FILE,
            sample=lambda crop: calibration_batches(first, crop),
        )
        there = {split.name: _file_there(split, out, network, names, precision) for split in opened}
        for split in opened:
            if there[split.name] is None or not samples_path(out, split.name).is_file():
                write_samples(split, out)
        if all(there.values()):
            return [_kept_summary(split, file) for split, file in zip(opened, there.values(), strict=True) if file is not None]
        sample = sample_images(first, exact.preprocessing.crop, AGREEMENT_IMAGES)
        with out_of_memory():
            chosen = choose_arithmetic(exact, precision=precision, device=devices[0], sample=sample)
            dim = feature_dim(chosen.frozen)
        for note in chosen.notes:
            report(note)
        summaries = []
        for split in opened:
            file = there[split.name]
            if file is not None:
                summaries.append(_kept_summary(split, file))
                continue
            arithmetic = chosen
            if len(devices) == 1:  # a compiled network cannot be sent to another process
                arithmetic = compile_where_it_pays(chosen, sample=sample, views=split.images * len(names), views_per_pass=batch_images * len(names))
            for note in arithmetic.notes[len(chosen.notes) :]:
                report(note)
            provenance = _provenance(split, network, arithmetic, names, batch_images, devices)
            plan = Plan(provenance=provenance, dim=dim, batch_images=batch_images, workers=workers)
            run: Run
            if len(devices) == 1:
                run = functools.partial(cache_parts, frozen=arithmetic.frozen, device=devices[0])
            else:
                state = save(backbone_state(arithmetic.frozen, whitening=False)) if arithmetic.precision != "fp32" else None
                recipe = Recipe(network=network, weights_kept=out / KEPT_FILE, precision=arithmetic.precision, kept=arithmetic.kept, state=state)
                run = functools.partial(cache_parts_on_devices, recipe=recipe, devices=devices)
            summaries.append(_cache_split(split, out, plan, run, report, quiet=quiet))
        return summaries


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


def _provenance(
    split: Split, network: Network, arithmetic: Arithmetic, names: tuple[str, ...], batch_images: int, devices: Sequence[torch.device]
) -> Provenance:
    machine: dict[str, Any] = {"images_per_pass": batch_images}
    if devices[0].type == "cpu":
        machine["threads"] = torch.get_num_threads() if len(devices) == 1 else max(1, default_workers() // len(devices))
    return Provenance(
        backbone=network.backbone,
        weights=network.weights,
        weights_sha256=network.weights_sha256,
        preprocessing=network.content()["preprocessing"],
        views=names,
        precision=arithmetic.precision,
        arithmetic={**arithmetic.details, **machine},
        split=split.name,
        split_digest=split.digest,
        versions=library_versions("torch", "torchvision", "timm", "h5py"),
    )


def check_feature_folder(out: Path, *also: str) -> None:
    """Refuse an output folder that holds something else than feature files, what stands beside them, and files named ``also``.

    Raises:
        OccupiedError: It does; names one such file.
    """
    with disk_errors(out):
        if out.exists() and not out.is_dir():
            raise OccupiedError(f"{out}: is a file. Choose a new or empty folder for --out.")
        inside = [p.name for p in out.iterdir()] if out.is_dir() else []
    strangers = sorted(name for name in inside if not name.startswith(".") and name not in (KEPT_FILE, *also) and not OWN_FILE.fullmatch(name))
    if strangers:
        raise OccupiedError(f"{out}: holds something else than feature files ({strangers[0]}). Choose a new or empty folder for --out.")


def _file_there(split: Split, out: Path, network: Network, names: tuple[str, ...], precision: str) -> FeatureFile | None:
    """The split's feature file if there is one; another one than is asked for is refused."""
    target = feature_path(out, split.name)
    if not target.is_file():
        return None
    file = open_features(target)
    check_made_from(file, split)
    found = file.provenance
    sides = [
        ("backbone", found.backbone, network.backbone),
        ("digest of the weights", found.weights_sha256, network.weights_sha256),
        ("preprocessing", found.preprocessing, network.content()["preprocessing"]),
        ("views", ", ".join(found.views), ", ".join(names)),
        ("precision", found.precision, found.precision if precision == "auto" else precision),
    ]
    for what, holds, asked in sides:
        if holds != asked:
            raise MismatchError(f"{target}: holds features with another {what}: {holds} there, {asked} asked for. Choose another --out.")
    return file


def _kept_summary(split: Split, file: FeatureFile) -> CacheSummary:
    return CacheSummary(
        split=split.name,
        path=file.path,
        images=file.table.images,
        dim=file.dim,
        views=len(file.provenance.views),
        precision=file.provenance.precision,
        kept=True,
        notes=tuple(filter(None, [split.skipped_note()])),
        images_per_second=0.0,
    )


def calibration_batches(split: Split, crop: int) -> Iterator[Tensor]:
    """Up to ``CALIBRATION_IMAGES`` photographs of a split, from its start, as uint8 (images, crop, crop, 3)."""
    left = CALIBRATION_IMAGES
    for shard in split.shards:
        samples = shard.sidecar.samples[:left]
        left -= len(samples)
        for start in range(0, len(samples), CALIBRATION_BATCH):
            yield _center_crops(shard, samples[start : start + CALIBRATION_BATCH], crop)
        if not left:
            return


def _center_crops(shard: Shard, samples: Sequence[Sample], crop: int) -> Tensor:
    pixels = np.empty((len(samples), 1, crop, crop, 3), dtype=np.uint8)
    decode_into(pixels, shard, samples, (CENTER,))
    return torch.from_numpy(pixels[:, 0])


def sample_images(split: Split, crop: int, count: int) -> Tensor:
    """Up to ``count`` photographs, evenly spaced over the split: uint8 (images, crop, crop, 3)."""
    rows = sorted({int(row) for row in np.linspace(0, split.images - 1, min(count, split.images))})
    return torch.cat([_center_crops(shard, [sample], crop) for shard, sample in map(split.sample, rows)] or [torch.empty(0, crop, crop, 3)])


def _cache_split(split: Split, out: Path, plan: Plan, run: Run, report: Callable[[str], None], *, quiet: bool) -> CacheSummary:
    target = feature_path(out, split.name)
    folder = out / f".{split.name}.parts"
    parts = [folder / f"{index:06d}.h5" for index in range(len(split.shards))]
    with Progress(f"Caching {split.name}", total=split.images, unit="images", quiet=quiet) as progress:
        tasks = []
        for shard, part in zip(split.shards, parts, strict=True):
            if part_is_whole(part, shard, plan.provenance):
                progress.advance(len(shard.sidecar.samples), note="kept from the last run")
            else:
                tasks.append((shard, part))
        again = sum(part.is_file() for _, part in tasks)
        if again:
            report(f"{folder}: {again} parts of an earlier run are damaged or were made in another way; they are made again.")
        before, progress.started = progress.done, time.monotonic()
        if tasks:
            run(tasks, plan=plan, advance=progress.advance)
        rate = (progress.done - before) / max(time.monotonic() - progress.started, 1e-9)
    images, _ = write_features(target, lambda: ((f.features, f.table) for f in map(open_features, parts)), dim=plan.dim, provenance=plan.provenance)
    shutil.rmtree(folder, ignore_errors=True)
    return CacheSummary(
        split=split.name,
        path=target,
        images=images,
        dim=plan.dim,
        views=len(plan.provenance.views),
        precision=plan.provenance.precision,
        kept=False,
        notes=tuple(filter(None, [split.skipped_note()])),
        images_per_second=rate,
    )


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
