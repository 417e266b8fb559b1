"""Images of a split that calibrate random weights, and on which a lower precision is tested."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.features.pixel_batches import decode_into
from pipeline.features.views import CENTER
from shards.dataset import DatasetFile, Shard, Split
from shards.errors import DamageError, OnError
from shards.sidecar import Sample
from shards.tar import open_readable_split

CALIBRATION_IMAGES = 512
CALIBRATION_BATCH = 64


def calibration_batches(split: Split, crop: int) -> Iterator[Tensor]:
    """Center crops of the first ``CALIBRATION_IMAGES`` images of a split, in batches, uint8 (images, crop, crop, 3)."""
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


def evenly_spaced_images(split: Split, crop: int, count: int) -> Tensor:
    """Center crops of up to ``count`` images, evenly spaced over the split: uint8 (images, crop, crop, 3)."""
    rows = sorted({int(row) for row in np.linspace(0, split.images - 1, min(count, split.images))})
    return torch.cat([_center_crops(shard, [sample], crop) for shard, sample in map(split.sample, rows)] or [torch.empty(0, crop, crop, 3)])


def reference_split(shards: Path, dataset: DatasetFile, opened: Sequence[Split], on_error: OnError) -> Split:
    """The split whose images calibrate and judge the network, whichever splits are cached: train, or the first one with images."""
    by_name = {split.name: split for split in opened}
    for name in train_first(dataset):
        with contextlib.suppress(DamageError):  # the tars of a split that is not cached may be gone by now
            split = by_name[name] if name in by_name else open_readable_split(shards, name, on_error)
            if split.images:
                return split
    return opened[0]


def train_first(dataset: DatasetFile) -> list[str]:
    """The names of a dataset's splits, ``train`` before the others."""
    return sorted(dataset.splits, key=lambda name: (name != "train", name))
