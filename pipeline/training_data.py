"""Shards or feature files -> what a training reads: the same from both."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from model.encoder import FrozenBackbone, feature_dim
from model.precision import folded
from model.vocabulary import Vocabulary
from pipeline.backbones import KEPT_FILE, Network, open_backbone, recorded_network
from pipeline.batches import WINDOW_SHARDS, CaptionBatch, Encoded, FeatureSource, Order, ShardSource, Source, to_device
from pipeline.cache_features import calibration_batches
from shards.caption_table import table_of_split
from shards.errors import InputError
from shards.features import check_same_network, feature_path, open_features
from shards.manifest import read_dataset_file
from shards.remote import check_cache_holds
from shards.tar import OnError, open_samples


class Features(Protocol):
    """A batch's images -> float (units, dim) features on the device."""

    def __call__(self, batch: CaptionBatch) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Data:
    """A training's input, opened: the same from shards or from a feature file."""

    kind: Literal["features", "shards"]
    path: Path
    source: Source
    val: Source | None
    network: Network
    frozen: FrozenBackbone | None
    data_digest: str
    notes: tuple[str, ...] = ()

    @property
    def feature_dim(self) -> int:
        return self.source.feature_dim if self.frozen is None else feature_dim(self.frozen)  # type: ignore[return-value]


def open_cached(features: Path) -> Data:
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
    return Data(
        kind="features",
        path=features,
        source=FeatureSource(train, draw_views=True),
        val=FeatureSource(val) if val is not None else None,
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
    augment: Literal["tutorial", "none"],
    device: torch.device,
    on_error: OnError = "fail",
) -> Data:
    """Open a shard dataset and the network that its pixels will go through.

    Random weights are calibrated on the training photographs and kept in ``out``.

    Raises:
        InputError, DamageError, MismatchError, ResourceError: As the parts say.
    """
    split = open_samples(shards, "train", on_error)
    check_cache_holds(split, WINDOW_SHARDS + 1)
    network, frozen = open_backbone(
        backbone=backbone,
        weights=weights,
        resize=split.config["resize"],
        kept=out / KEPT_FILE,
        sample=lambda crop: calibration_batches(split, crop),
    )
    val = None
    notes = [split.skipped_note()]
    if "val" in read_dataset_file(shards).splits:
        val_split = open_samples(shards, "val", on_error)
        notes.append(val_split.skipped_note())
        val = ShardSource(val_split, table_of_split(val_split), network.preprocessing, "none")
    return Data(
        kind="shards",
        path=shards,
        source=ShardSource(split, table_of_split(split), network.preprocessing, augment),
        val=val,
        network=network,
        frozen=folded(frozen).to(device),  # as features are cached
        data_digest=split.digest,
        notes=tuple(note for note in notes if note),
    )


def features_function(data: Data) -> Features:
    """What turns a batch of ``data`` into features: nothing where they are cached, the frozen network where they are not."""
    frozen = data.frozen
    if frozen is None:
        return lambda batch: batch.images
    # Rounded like cached features, so that both ways train on the same numbers.
    return lambda batch: frozen(batch.images).half()


@torch.inference_mode()
def val_batches(data: Data, vocabulary: Vocabulary, features_of: Features, device: torch.device) -> list[CaptionBatch]:
    """The val split's captions in order, with their features, computed once: the frozen network gives the same every time."""
    assert data.val is not None
    table = data.val.table
    encoded = Encoded(table, vocabulary)
    rows = np.arange(table.images)
    order = Order(image_rows=rows, captions=np.arange(table.captions), offsets=np.concatenate([[0], np.cumsum(table.caption_counts)]))
    batches = []
    for start in range(0, table.images, 32):
        stop = min(start + 32, table.images)
        captions = order.captions[order.offsets[start] : order.offsets[stop]]
        tokens, lengths = encoded.batch(captions)
        batch = CaptionBatch(
            epoch=0,
            step=0,
            images=data.val.images(order, start, stop, np.zeros((table.images, 3))),
            unit_rows=torch.from_numpy(np.repeat(np.arange(stop - start), table.caption_counts[start:stop])),
            captions=torch.from_numpy(captions),
            tokens=tokens,
            caption_lengths=lengths,
        )
        batch = to_device(batch, device)
        batches.append(replace(batch, images=features_of(batch)))
    return batches
