"""Shards or feature files -> the input of training, which is the same from both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.encoder import FrozenBackbone, feature_shape
from pipeline.backbone.backbones import KEPT_FILE, Network, open_backbone, pooled_network, recorded_network
from pipeline.backbone.extraction import extract_features
from pipeline.backbone.precision import AGREEMENT_IMAGES, ComputedBackbone, choose_precision, compile_if_worthwhile
from pipeline.execution.devices import images_per_pass, out_of_memory
from pipeline.execution.progress import Progress
from pipeline.features.calibration import calibration_batches, evenly_spaced_images
from pipeline.features.previews import read_previews, split_previews
from pipeline.loading.batches import CaptionBatch
from pipeline.loading.feature_source import FeatureSource
from pipeline.loading.order import WINDOW_SHARDS
from pipeline.loading.sources import Augmentation, ShardSource, Source
from shards.caption_table import CaptionTable, table_from_records
from shards.dataset import Shard, Split, read_dataset_file
from shards.errors import OnError
from shards.features import check_same_network, feature_path, open_features
from shards.remote import check_cache_holds
from shards.tar import open_readable_split, read_records

Pictures = Callable[[Sequence[int]], list[NDArray[np.uint8] | None]]


class FeatureExtractor(Protocol):
    """A batch's images -> features, float16 (units, positions, dim), on the device."""

    def __call__(self, batch: CaptionBatch) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The opened input of a training, from shards or from feature files.

    Attributes:
        val: The val split, if there is one.
        val_pictures: Returns the pixels of val images, to show them.
        frozen: The network that raw images pass through; None for cached features.
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
        return self.source.feature_dim if self.frozen is None else feature_shape(self.frozen)[1]  # type: ignore[return-value]


def open_cached(features: Path, device: torch.device, *, pooled: bool = True, memory_bytes: int | None = None) -> TrainingData:
    """Open a folder of feature files: ``train.h5``, and ``val.h5`` if there is one.

    Args:
        pooled: For a decoder that sees one vector: the mean over the positions, where that is the network's pooled features.
        memory_bytes: As for :class:`pipeline.loading.feature_source.FeatureSource`.

    Raises:
        InputError, DamageError, MismatchError: A file is missing or damaged, or they are of different networks; or the network's pooled
            features are not the mean over the positions.
    """
    train = open_features(feature_path(features, "train"))
    val = open_features(feature_path(features, "val")) if feature_path(features, "val").is_file() else None
    if val is not None:
        check_same_network(train, val)
    keys = val.table.keys if val is not None else ()
    return TrainingData(
        kind="features",
        path=features,
        source=FeatureSource(train, sample_views=True, pooled=pooled, memory_bytes=memory_bytes, device=device),
        val=FeatureSource(val, pooled=pooled, memory_bytes=memory_bytes) if val is not None else None,
        val_pictures=lambda rows: read_previews(features, "val", [keys[row] for row in rows]),
        network=pooled_network(train) if pooled else recorded_network(train.provenance),
        frozen=None,
        data_digest=train.digest,
    )


@dataclass(frozen=True, kw_only=True)
class RawConfig:
    """How raw images are read and passed through the network.

    Attributes:
        backbone, weights: As for :func:`pipeline.backbone.backbones.open_backbone`.
        augment: As for :class:`pipeline.loading.sources.ShardSource`.
        precision: ``fp32`` or ``bf16``; bf16 falls back to fp32 if the network does not agree with it.
        epochs: How often each caption's image passes through the network: compiling pays off only for many images.
        max_images: At most this many images pass through it, in a training that stops early.
        threads: Threads that decode; by default one per core.
        on_error: ``fail`` at a damaged sample, or ``skip`` it.
    """

    backbone: str
    weights: str | None
    augment: Augmentation
    precision: str
    epochs: int = 1
    max_images: int | None = None
    threads: int | None = None
    on_error: OnError = "fail"


def open_raw(shards: Path, out: Path, config: RawConfig, device: torch.device, *, quiet: bool = True) -> TrainingData:
    """Open a shard dataset and the network that its images pass through, computed as ``cache-features`` computes it.

    Random weights are calibrated on the training images and written to ``out``.

    Args:
        quiet: Show no progress while captions are read, for which remote shards are fetched.

    Raises:
        InputError, DamageError, MismatchError, ResourceError: As the functions called here.
    """
    split = open_readable_split(shards, "train", config.on_error)
    check_cache_holds(split, WINDOW_SHARDS + 1)
    network, exact = open_backbone(
        backbone=config.backbone,
        weights=config.weights,
        resize=split.config["resize"],
        kept=out / KEPT_FILE,
        sample=lambda crop: calibration_batches(split, crop),
    )
    computed = _compute(exact, split, config, device)
    preprocessing = exact.preprocessing
    notes = [split.skipped_note(), *computed.notes]
    val, val_split = None, None
    if "val" in read_dataset_file(shards).splits:
        val_split = open_readable_split(shards, "val", config.on_error)
        notes.append(val_split.skipped_note())
        val = ShardSource(val_split, read_caption_table(val_split, quiet=quiet), preprocessing, "none", threads=config.threads)
    table = read_caption_table(split, quiet=quiet)
    return TrainingData(
        kind="shards",
        path=shards,
        source=ShardSource(split, table, preprocessing, config.augment, threads=config.threads, pinned=device.type == "cuda"),
        val=val,
        val_pictures=lambda rows: split_previews(val_split, rows) if val_split is not None else [],
        network=network,
        frozen=computed.frozen,
        data_digest=split.digest,
        notes=tuple(note for note in notes if note),
    )


def _compute(exact: FrozenBackbone, split: Split, config: RawConfig, device: torch.device) -> ComputedBackbone:
    with out_of_memory():
        sample = evenly_spaced_images(split, exact.preprocessing.crop, AGREEMENT_IMAGES)
        # bf16 was chosen for the device. "auto" tests whether this network agrees with it.
        chosen = choose_precision(exact, precision="fp32" if config.precision == "fp32" else "auto", device=device, sample=sample)
        images = config.epochs * split.captions
        if config.max_images is not None:
            images = min(images, config.max_images)
        return compile_if_worthwhile(chosen, sample=sample, views=images, views_per_pass=images_per_pass(device))


def read_caption_table(split: Split, *, quiet: bool = True) -> CaptionTable:
    """Read all captions of a split, with progress, since remote shards are fetched for them.

    Raises:
        InputError, DamageError, ResourceError: As :func:`shards.tar.read_records`.
    """
    with Progress(f"Reading captions of {split.name}", total=split.images, unit="images", quiet=quiet) as progress:

        def records(shard: Shard) -> Iterator[tuple[str, dict[str, Any]]]:
            for sample, record in read_records(shard):
                yield sample.key, record
            progress.advance(len(shard.sidecar.samples))

        return table_from_records(map(records, split.shards), language=split.language)


def feature_extractor(data: TrainingData) -> FeatureExtractor:
    """What turns a batch of ``data`` into features: the frozen network for raw images, nothing for cached features."""
    frozen, dim = data.frozen, data.feature_dim
    if frozen is None:
        return lambda batch: batch.images

    def extract(batch: CaptionBatch) -> Tensor:
        images = batch.images
        if not len(images):  # a rank's slice of a small batch may be empty
            return images.new_empty((0, 1, dim), dtype=torch.float16)
        return extract_features(frozen, images, batch_size=images_per_pass(images.device))

    return extract
