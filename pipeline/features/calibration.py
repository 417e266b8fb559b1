"""Images of a split that calibrate random weights, and on which a lower precision is tested."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.features.pixel_batches import decode_into
from pipeline.features.views import CENTER
from shards.dataset import Shard, Split
from shards.sidecar import Sample

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
