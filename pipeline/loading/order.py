"""The order of training: a pure function of (seed, epoch) and the counts of images and captions, known before any image is read.

It is the same for shards and feature files, and for any number of threads, processes and machines. So the state of the data stream is two
integers, epoch and step.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.caption_table import CaptionTable

# Units are shuffled across this many shards at a time, so that remote shards are still read sequentially.
WINDOW_SHARDS = 16


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """The order of one epoch. A unit is an image with some of its captions.

    Attributes:
        image_rows: int64 (units,): the image of each unit.
        captions: int64 (captions,): caption indices, unit after unit.
        offsets: int64 (units + 1,): where each unit's captions begin.
    """

    image_rows: NDArray[np.int64]
    captions: NDArray[np.int64]
    offsets: NDArray[np.int64]

    @property
    def units(self) -> int:
        return len(self.image_rows)


@dataclass(frozen=True, kw_only=True)
class RankSlice:
    """The slice of a batch that one rank works on: the ``rank``-th of ``size`` equal slices. The default is the whole batch.

    >>> RankSlice(rank=1, size=3).of(10, 18)
    (12, 15)
    """

    rank: int = 0
    size: int = 1

    def of(self, start: int, stop: int) -> tuple[int, int]:
        """The rank's slice of start ... stop. Slices differ by at most one item, and may be empty."""
        count = stop - start
        return start + count * self.rank // self.size, start + count * (self.rank + 1) // self.size


def epoch_order(table: CaptionTable, *, seed: int, epoch: int, captions_per_image: int = 1) -> EpochOrder:
    """The order of one epoch: every caption exactly once.

    An image's captions are permuted and cut into units of at most ``captions_per_image``; shards are permuted and taken in windows
    of ``WINDOW_SHARDS``; units are permuted inside a window. Drawn from PCG64 seeded with (seed, epoch).
    """
    rng = np.random.default_rng([seed, epoch])
    rows = table.image_rows.astype(np.int64)
    order = np.lexsort((rng.random(len(rows)), rows))  # within each image at random; images stay in order
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(table.caption_counts)])
    place = np.arange(len(rows)) - first[rows]
    begins = np.flatnonzero(place % captions_per_image == 0)
    lengths = np.diff(np.append(begins, len(rows)))
    images = rows[begins]

    shard_place = rng.permutation(len(table.shard_images))
    window = shard_place[table.shard_rows[images]] // WINDOW_SHARDS
    shuffled = np.lexsort((rng.random(len(begins)), window))

    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[shuffled])])
    # (captions,): each unit's captions stand at begins[unit] ... begins[unit] + length - 1 of the permuted captions.
    spread = np.repeat(begins[shuffled] - offsets[:-1], lengths[shuffled]) + np.arange(len(rows))
    return EpochOrder(image_rows=images[shuffled], captions=order[spread], offsets=offsets)


def unit_draws(units: int, *, seed: int, epoch: int) -> NDArray[np.float64]:
    """Uniform random numbers, float64 (units, 3), that decide each unit's crop, mirroring or cached view in an epoch."""
    return np.random.default_rng([seed, epoch, 1]).random((units, 3))


def batch_bounds(units: int, batch_size: int) -> list[tuple[int, int]]:
    """The first and last unit of every batch. A last batch of one unit, which BatchNorm cannot normalise, joins the batch before it.

    >>> batch_bounds(5, 2)
    [(0, 2), (2, 5)]
    """
    starts = list(range(0, units, batch_size))
    if len(starts) > 1 and units - starts[-1] == 1:
        starts.pop()
    return list(itertools.pairwise([*starts, units]))


def units_of(table: CaptionTable, *, captions_per_image: int = 1) -> int:
    """Number of units in an epoch."""
    return int((-(-table.caption_counts // captions_per_image)).sum())


def steps_per_epoch(table: CaptionTable, *, batch_size: int, captions_per_image: int = 1) -> int:
    """Number of batches in an epoch."""
    return len(batch_bounds(units_of(table, captions_per_image=captions_per_image), batch_size))
