"""Shards or feature files -> what a training reads: the same from both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.encoder import FrozenBackbone, feature_dim
from pipeline.backbone.backbones import KEPT_FILE, Network, open_backbone, recorded_network
from pipeline.backbone.extraction import extract_features
from pipeline.backbone.precision import AGREEMENT_IMAGES, ComputedBackbone, choose_precision, compile_if_worthwhile
from pipeline.execution.devices import images_per_pass, out_of_memory
from pipeline.execution.progress import Progress
from pipeline.features.calibration import calibration_batches, sample_images
from pipeline.features.previews import sample_pictures, split_pictures
from pipeline.loading.batches import CaptionBatch
from pipeline.loading.order import WINDOW_SHARDS
from pipeline.loading.sources import Augmentation, FeatureSource, ShardSource, Source
from shards.caption_table import CaptionTable, table_from_records
from shards.errors import InputError, OnError
from shards.features import check_same_network, feature_path, open_features
from shards.manifest import Shard, Split, read_dataset_file
from shards.remote import check_cache_holds
from shards.tar import open_samples, read_records

Pictures = Callable[[Sequence[int]], list[NDArray[np.uint8] | None]]


class FeatureExtractor(Protocol):
    """A batch's images -> float16 (units, dim) features on the device."""

    def __call__(self, batch: CaptionBatch) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """A training's input, opened: the same from shards or from a feature file.

    Attributes:
        val: The val split, where there is one.
        val_pictures: Gives the pixels of val images, for looking at.
        frozen: The network that raw images go through; None where features are cached.
    """

    kind: Literal["features", "shards"]
    path: Path
    source: Source
    val: Source | None
    val_pictures: Pictures
    network: Network
    frozen: FrozenBackbone | None
    data_digest: str
    notes: tuple[str, ...] = ()

    @property
    def feature_dim(self) -> int:
        return self.source.feature_dim if self.frozen is None else feature_dim(self.frozen)  # type: ignore[return-value]


def open_cached(features: Path, device: torch.device) -> TrainingData:
    """Open a folder of feature files: ``train.h5``, and ``val.h5`` where there is one.

    Raises:
        InputError, DamageError, MismatchError: Missing, damaged, or of different networks.
    """
    if not features.is_dir():
        raise InputError(f"{features}: no such folder of feature files. Make it with: python cli.py cache-features --out {features}")
    train = open_features(feature_path(features, "train"))
    val = open_features(feature_path(features, "val")) if feature_path(features, "val").is_file() else None
    if val is not None:
        check_same_network(train, val)
    keys = val.table.keys if val is not None else ()
    return TrainingData(
        kind="features",
        path=features,
        source=FeatureSource(train, draw_views=True, device=device),
        val=FeatureSource(val) if val is not None else None,
        val_pictures=lambda rows: sample_pictures(features, "val", [keys[row] for row in rows]),
        network=recorded_network(train.provenance),
        frozen=None,
        data_digest=train.digest,
    )


def open_raw(
    shards: Path,
    out: Path,
    *,
    backbone: str,
    weights: str | None,
    augment: Augmentation,
    precision: str,
    device: torch.device,
    passes: int = 1,
    threads: int | None = None,
    on_error: OnError = "fail",
    quiet: bool = True,
) -> TrainingData:
    """Open a shard dataset and the network that its pixels will go through, computed as ``cache-features`` computes it.

    Random weights are calibrated on the training photographs and kept in ``out``.

    Args:
        precision: ``fp32`` or ``bf16``; bf16 goes back to fp32 where the network does not agree with it.
        passes: How many times about each caption's image will go through the network: compiling may pay.
        threads: Threads that decode; by default one for each core.
        quiet: Show no progress while captions are read, for which remote shards are fetched.

    Raises:
        InputError, DamageError, MismatchError, ResourceError: As the parts say.
    """
    split = open_samples(shards, "train", on_error)
    check_cache_holds(split, WINDOW_SHARDS + 1)
    network, exact = open_backbone(
        backbone=backbone,
        weights=weights,
        resize=split.config["resize"],
        kept=out / KEPT_FILE,
        sample=lambda crop: calibration_batches(split, crop),
    )
    with out_of_memory():
        sample = sample_images(split, exact.preprocessing.crop, AGREEMENT_IMAGES)
        arithmetic = _arithmetic(exact, precision, device, sample, passes * split.captions)
    val, pictures = None, None
    notes = [split.skipped_note(), *arithmetic.notes]
    if "val" in read_dataset_file(shards).splits:
        val_split = open_samples(shards, "val", on_error)
        notes.append(val_split.skipped_note())
        val = ShardSource(val_split, read_captions(val_split, quiet=quiet), exact.preprocessing, "none", threads=threads)
        pictures = val_split
    pinned = device.type == "cuda"
    return TrainingData(
        kind="shards",
        path=shards,
        source=ShardSource(split, read_captions(split, quiet=quiet), exact.preprocessing, augment, threads=threads, pinned=pinned),
        val=val,
        val_pictures=lambda rows: split_pictures(pictures, rows) if pictures is not None else [],
        network=network,
        frozen=arithmetic.frozen,
        data_digest=split.digest,
        notes=tuple(note for note in notes if note),
    )


def read_captions(split: Split, *, quiet: bool = True) -> CaptionTable:
    """All captions of a split, with progress: the shards of a remote one are fetched meanwhile.

    Raises:
        InputError, DamageError, ResourceError: As :func:`shards.tar.read_records`.
    """
    with Progress(f"Reading captions of {split.name}", total=split.images, unit="images", quiet=quiet) as progress:

        def records(shard: Shard) -> Iterator[tuple[str, dict[str, Any]]]:
            for sample, record in read_records(shard):
                yield sample.key, record
            progress.advance(len(shard.sidecar.samples))

        return table_from_records(map(records, split.shards))


def _arithmetic(exact: FrozenBackbone, precision: str, device: torch.device, sample: Tensor, images: int) -> ComputedBackbone:
    # bf16 was picked for this device; whether this network agrees with it is judged here, as "auto" does.
    chosen = choose_precision(exact, precision="fp32" if precision == "fp32" else "auto", device=device, sample=sample)
    return compile_if_worthwhile(chosen, sample=sample, views=images, views_per_pass=images_per_pass(device))


def feature_extractor(data: TrainingData) -> FeatureExtractor:
    """What turns a batch of ``data`` into features: the frozen network for raw images, nothing for cached features."""
    frozen, dim = data.frozen, data.feature_dim
    if frozen is None:
        return lambda batch: batch.images

    def extract(batch: CaptionBatch) -> Tensor:
        images = batch.images
        if not len(images):  # a rank's slice of a small batch may be empty
            return images.new_empty((0, dim), dtype=torch.float16)
        return extract_features(frozen, images, batch_size=images_per_pass(images.device))

    return extract
