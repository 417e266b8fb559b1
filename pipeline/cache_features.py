"""Shards -> feature files: every image once through the frozen backbone, never again.

A shard is one task, and its result a feature file of its own (a part); the last step joins the parts of a split into one committed
file. A run that was killed goes on behind its last finished part. Batches never cross a shard, so parts are the same whoever made them.
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.encoder import FrozenBackbone, feature_dim
from model.preprocessing import center_crop
from pipeline.backbones import KEPT_FILE, Network, open_backbone, pick_device
from pipeline.executors import default_workers
from pipeline.prefetch import ahead
from pipeline.progress import Progress
from pipeline.reading import decode_sample, shard_samples
from shards.atomic import disk_errors, exclusive
from shards.caption_table import CaptionTable, concatenate, table_from_records
from shards.errors import CapstreamError, DamageError, InputError, MismatchError, OccupiedError
from shards.features import FeatureFile, Provenance, feature_path, open_features, write_features
from shards.manifest import SPLIT_NAME, Sample, Shard, Split, library_versions, read_dataset_file
from shards.tar import OnError, open_samples

CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64
VIEWS = ("center",)


@dataclass(frozen=True, kw_only=True)
class CacheSummary:
    """What one split's pass did; ``images_per_second`` is 0 where the file was there already."""

    split: str
    path: Path
    images: int
    dim: int
    kept: bool
    note: str | None
    images_per_second: float


def cache_features(
    *,
    shards: Path,
    out: Path,
    splits: Sequence[str] = (),
    backbone: str = "resnet152",
    weights: str = "IMAGENET1K_V1",
    batch_size: int = 32,
    device: str = "auto",
    on_error: OnError = "fail",
    quiet: bool = True,
) -> list[CacheSummary]:
    """Write ``OUT/SPLIT.h5`` for every split, and beside them the weights where they are random.

    Args:
        shards: A shard dataset.
        out: A new or empty folder, or one with feature files of the same network.
        splits: Which splits; all by default.
        backbone, weights: As for :func:`pipeline.backbones.open_backbone`.
        batch_size: Images per forward pass.
        device: ``auto``, ``cpu``, ``cuda``...
        on_error: ``fail`` at a damaged sample, or ``skip`` it.

    Raises:
        InputError: Wrong names, sizes or folders.
        OccupiedError: ``out`` holds something else, or is being written to.
        MismatchError: ``out`` holds features of other shards or of another network.
        DamageError: A shard is damaged, or the network gave no finite number; names the sample.
        ResourceError: Weights cannot be downloaded, disk full, not allowed.
    """
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: must be at least 1.")
    dataset = read_dataset_file(shards)
    names = list(splits) or sorted(dataset.splits, key=lambda name: (name != "train", name))
    opened = [open_samples(shards, name, on_error) for name in names]
    if not opened:
        raise InputError(f"{shards}: holds no split yet. Run the shard command to its end first.")
    _check_out(out)
    torch_device = pick_device(device)
    with exclusive(out, "cache", "caching features"):
        resize = dataset.config["resize"]
        network, frozen = open_backbone(
            backbone=backbone,
            weights=weights,
            resize=resize,
            kept=out / KEPT_FILE,
            sample=lambda crop: calibration_batches(opened[0], crop),
        )
        frozen.to(torch_device)
        dim = feature_dim(frozen)
        return [_cache_split(split, out, network, frozen, dim, batch_size, quiet=quiet) for split in opened]


def _check_out(out: Path) -> None:
    with disk_errors(out):
        if out.exists() and not out.is_dir():
            raise OccupiedError(f"{out}: is a file. Choose a new or empty folder for --out.")
        inside = [p.name for p in out.iterdir()] if out.is_dir() else []
    strangers = sorted(
        name
        for name in inside
        if not name.startswith(".") and name != KEPT_FILE and not (name.endswith(".h5") and SPLIT_NAME.fullmatch(name[: -len(".h5")]))
    )
    if strangers:
        raise OccupiedError(f"{out}: holds something else than feature files ({strangers[0]}). Choose a new or empty folder for --out.")


def calibration_batches(split: Split, crop: int) -> Iterator[Tensor]:
    """Up to ``CALIBRATION_IMAGES`` photographs of a split, from its start, as uint8 (images, crop, crop, 3)."""
    samples = itertools.islice(((shard, s, jpeg) for shard in split.shards for s, jpeg, _ in shard_samples(shard)), CALIBRATION_IMAGES)
    pixels = [torch.from_numpy(decode_sample(shard, s.key, jpeg)) for shard, s, jpeg in samples]
    for start in range(0, len(pixels), CALIBRATION_BATCH):
        yield center_crop(pixels[start : start + CALIBRATION_BATCH], crop)


def _cache_split(split: Split, out: Path, network: Network, frozen: FrozenBackbone, dim: int, batch_size: int, *, quiet: bool) -> CacheSummary:
    target = feature_path(out, split.name)
    provenance = Provenance(
        backbone=network.backbone,
        weights=network.weights,
        weights_sha256=network.weights_sha256,
        preprocessing=network.content()["preprocessing"],
        views=VIEWS,
        precision="fp32",
        split=split.name,
        split_digest=split.digest,
        versions=library_versions("torch", "torchvision", "h5py"),
    )
    if target.is_file():
        there = open_features(target)
        check_made_from(there, split)
        if there.provenance.network() != provenance.network():
            raise MismatchError(
                f"{target}: holds features of {there.provenance.backbone} with weights {there.provenance.weights_sha256}, asked for "
                f"{provenance.backbone} with {provenance.weights_sha256}. Choose another --out."
            )
        return CacheSummary(
            split=split.name, path=target, images=there.table.images, dim=there.dim, kept=True, note=split.skipped_note(), images_per_second=0.0
        )
    folder = out / f".{split.name}.parts"
    parts = [folder / f"{index:06d}.h5" for index in range(len(split.shards))]
    with Progress(f"Caching {split.name}", total=split.images, unit="images", quiet=quiet) as progress:
        for shard, part in zip(split.shards, parts, strict=True):
            if not _part_is_whole(part, shard, provenance):
                features, table = _shard_features(shard, frozen, dim, batch_size, progress)
                write_features(part, [features], dim=dim, table=table, provenance=provenance)
            else:
                progress.advance(len(shard.sidecar.samples), note="kept from the last run")
        rate = progress.rate
    opened = [open_features(part) for part in parts]
    table = concatenate([part.table for part in opened])
    write_features(target, (part.features for part in opened), dim=dim, table=table, provenance=provenance)
    shutil.rmtree(folder)
    return CacheSummary(split=split.name, path=target, images=table.images, dim=dim, kept=False, note=split.skipped_note(), images_per_second=rate)


def _part_is_whole(part: Path, shard: Shard, provenance: Provenance) -> bool:
    if not part.is_file():
        return False
    try:
        there = open_features(part)
    except CapstreamError:
        return False
    return asdict(there.provenance) == asdict(provenance) and there.table.keys == tuple(s.key for s in shard.sidecar.samples)


def _shard_features(shard: Shard, frozen: FrozenBackbone, dim: int, batch_size: int, progress: Progress) -> tuple[NDArray[np.float16], CaptionTable]:
    """All features of one shard, float16 (images, 1, dim), and its captions."""
    device = next(frozen.parameters()).device
    crop = frozen.preprocessing.crop
    samples = list(shard_samples(shard))
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]

    def decode(batch: list[tuple[Sample, bytes, dict[str, Any]]]) -> Tensor:
        return center_crop((torch.from_numpy(decode_sample(shard, sample.key, jpeg)) for sample, jpeg, _ in batch), crop)

    rows = []
    for batch, pixels in zip(batches, ahead(decode, batches, threads=default_workers()), strict=True):
        rows.append(half_features(frozen, pixels.to(device), [f"{shard.path}: sample {sample.key}" for sample, _, _ in batch]))
        progress.advance(len(batch))
    features = np.concatenate(rows) if rows else np.zeros((0, dim), dtype="<f2")
    table = table_from_records([[(sample.key, record) for sample, _, record in samples]])
    return features[:, None, :], table


def half_features(frozen: FrozenBackbone, images: Tensor, names: Sequence[str]) -> NDArray[np.float16]:
    """Features of uint8 (images, crop, crop, 3), rounded to float16 as they are stored.

    Raises:
        DamageError: A feature is not finite in float16; names the image.
    """
    features = frozen(images).half().cpu()
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        name = names[int((~finite).nonzero()[0])]
        raise DamageError(
            f"{name}: the network's features are not finite in float16. The weights do not suit this network or its input; take other --weights."
        )
    rows: NDArray[np.float16] = features.numpy()
    return rows


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
