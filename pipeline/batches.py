"""One stream of batches from two sources: shards (raw pixels) or a feature file (cached features).

The order of an epoch is a pure function of (seed, epoch) and the counts of images and captions; it is known before any image is
read. Both sources take it from the same table, so raw and cached training see the same pairs in the same order, however many
threads decode ahead, and the state of the stream is two integers: epoch and step.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.preprocessing import Preprocessing, center_crop, crop_and_flip
from model.vocabulary import END, PAD, START, UNK, Vocabulary
from pipeline.executors import default_workers
from pipeline.prefetch import ahead
from pipeline.reading import decode_sample
from shards.caption_table import CaptionTable
from shards.errors import InputError
from shards.features import FeatureFile
from shards.manifest import Split
from shards.tar import read_member

Augmentation = Literal["tutorial", "none"]
# Units are shuffled across this many shards at a time: well mixed, and still a sequential pass over remote shards.
WINDOW_SHARDS = 16


@dataclass(frozen=True, kw_only=True)
class Order:
    """What comes when in one epoch. A unit is an image with some of its captions.

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
class CaptionBatch:
    """One training step's input.

    Attributes:
        epoch, step: Position in the stream; step counts from 0 in each epoch.
        images: float16 (units, dim) features, or uint8 (units, crop, crop, 3) pixels.
        unit_rows: int64 (captions,): the row of ``images`` that each caption belongs to.
        captions: int64 (captions,): indices into the caption table.
        tokens: int64 (captions, longest): [<start>, w1, ..., wn, <end>, <pad>, ...].
        caption_lengths: int64 (captions,): n + 2, on the CPU.
    """

    epoch: int
    step: int
    images: Tensor
    unit_rows: Tensor
    captions: Tensor
    tokens: Tensor
    caption_lengths: Tensor


def epoch_order(table: CaptionTable, *, seed: int, epoch: int, captions_per_image: int = 1) -> Order:
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

    shard_of_image = np.repeat(np.arange(len(table.shard_images)), table.shard_images)
    shard_place = rng.permutation(len(table.shard_images))
    window = shard_place[shard_of_image[images]] // WINDOW_SHARDS
    shuffled = np.lexsort((rng.random(len(begins)), window))

    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[shuffled])])
    # (captions,): each unit's captions stand at begins[unit] ... begins[unit] + length - 1 of the permuted captions.
    spread = np.repeat(begins[shuffled] - offsets[:-1], lengths[shuffled]) + np.arange(len(rows))
    return Order(image_rows=images[shuffled], captions=order[spread], offsets=offsets)


def batch_bounds(units: int, batch_size: int) -> list[tuple[int, int]]:
    """First and last unit of every batch; a last batch of one unit, which BatchNorm could not take, joins the one before.

    >>> batch_bounds(5, 2)
    [(0, 2), (2, 5)]
    """
    starts = list(range(0, units, batch_size))
    if len(starts) > 1 and units - starts[-1] == 1:
        starts.pop()
    return list(itertools.pairwise([*starts, units]))


class Source(Protocol):
    """Where a unit's image comes from."""

    table: CaptionTable
    feature_dim: int | None

    def images(self, order: Order, start: int, stop: int, draws: NDArray[np.float64]) -> Tensor:
        """Images of units start to stop; ``draws`` are uniform numbers, float64 (units, 3), for crop and mirror image, or for the cached view."""
        ...

    @property
    def threads(self) -> int:
        """How many threads are worth using."""
        ...


class FeatureSource:
    """Cached features, whole in memory: float16 (images, views, dim).

    Args:
        file: The feature file.
        draw_views: Draw one of the views for each unit, as training does; otherwise take their mean, as evaluation does.
    """

    threads = 0

    def __init__(self, file: FeatureFile, *, draw_views: bool = False) -> None:
        self.table = file.table
        self.feature_dim: int | None = file.dim
        features = file.features if draw_views else file.mean_view()[:, None]
        self.views = features.shape[1]
        # (images, views, dim) -> (images * views, dim): a unit's features are one row.
        self.features = torch.from_numpy(np.array(features)).flatten(0, 1)

    def images(self, order: Order, start: int, stop: int, draws: NDArray[np.float64]) -> Tensor:
        views = (draws[start:stop, 0] * self.views).astype(np.int64)
        return self.features[torch.from_numpy(order.image_rows[start:stop] * self.views + views)]


class ShardSource:
    """Pixels from shards: read at the sidecars' offsets, checked, decoded, cropped.

    Args:
        split: The shards.
        table: Their captions.
        preprocessing: Size and crop.
        augmentation: ``tutorial``: random crop and horizontal flip; ``none``: the centre crop of caching and captioning.
    """

    feature_dim: int | None = None

    def __init__(self, split: Split, table: CaptionTable, preprocessing: Preprocessing, augmentation: Augmentation) -> None:
        self.table, self.preprocessing, self.augmentation = table, preprocessing, augmentation
        self.threads = default_workers()
        self._split = split

    def images(self, order: Order, start: int, stop: int, draws: NDArray[np.float64]) -> Tensor:
        rows = order.image_rows[start:stop]
        decoded = {int(row): self._pixels(int(row)) for row in np.unique(rows)}
        pixels = [decoded[int(row)] for row in rows]
        crop = self.preprocessing.crop
        if self.augmentation == "none":
            return center_crop(pixels, crop)
        rest = np.array([image.shape[:2] for image in pixels]) - crop
        shifts = (draws[start:stop, :2] * (rest + 1)).astype(np.int64)
        return crop_and_flip(pixels, crop, shifts[:, 0].tolist(), shifts[:, 1].tolist(), (draws[start:stop, 2] < 0.5).tolist())

    def _pixels(self, row: int) -> Tensor:
        shard, sample = self._split.sample(row)
        with shard.open() as file:
            jpeg = read_member(file, shard, sample.key, "jpg", sample.jpg)
        return torch.from_numpy(decode_sample(shard, sample.key, jpeg))


class Encoded:
    """A table's captions as ids of one vocabulary, flat, ready for gathering."""

    def __init__(self, table: CaptionTable, vocabulary: Vocabulary) -> None:
        unknown = vocabulary.id(UNK)
        # A caption that spells a special word means the word, not the mark: it is unknown.
        marks = {PAD, START, END}
        ids = np.array([unknown if word in marks else vocabulary.id(word) for word in table.words], dtype=np.int64)
        self.ids = ids[table.tokens] if len(table.tokens) else np.zeros(0, np.int64)
        self.offsets = table.offsets
        self.start, self.end, self.pad = vocabulary.id(START), vocabulary.id(END), vocabulary.id(PAD)

    def batch(self, captions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Padded tokens, int64 (captions, longest), and their lengths, int64 (captions,), for some captions."""
        begins = self.offsets[captions]
        words = self.offsets[captions + 1] - begins
        width = int(words.max(initial=0)) + 2
        place = np.arange(width) - 1  # (longest,): place of each column among the words, -1 for <start>
        real = (place >= 0) & (place < words[:, None])
        tokens = np.full((len(captions), width), self.pad, dtype=np.int64)
        tokens[real] = self.ids[(begins[:, None] + place)[real]]
        tokens[:, 0] = self.start
        tokens[np.arange(len(captions)), words + 1] = self.end
        return torch.from_numpy(tokens), torch.from_numpy(words + 2)


def training_batches(
    source: Source, encoded: Encoded, *, seed: int, epoch: int, batch_size: int, captions_per_image: int = 1, first_step: int = 0
) -> Iterator[CaptionBatch]:
    """The batches of one epoch, from ``first_step`` on.

    Raises:
        InputError: Fewer than two units: BatchNorm needs two images.
        DamageError: A shard is damaged.
    """
    order = epoch_order(source.table, seed=seed, epoch=epoch, captions_per_image=captions_per_image)
    if order.units < 2:
        raise InputError(f"Training needs at least two captioned images, found {order.units}: BatchNorm cannot normalise a single one.")
    draws = np.random.default_rng([seed, epoch, 1]).random((order.units, 3))
    bounds = list(enumerate(batch_bounds(order.units, batch_size)))[first_step:]

    def build(item: tuple[int, tuple[int, int]]) -> CaptionBatch:
        step, (start, stop) = item
        captions = order.captions[order.offsets[start] : order.offsets[stop]]
        tokens, lengths = encoded.batch(captions)
        unit_rows = np.repeat(np.arange(stop - start), np.diff(order.offsets[start : stop + 1]))
        return CaptionBatch(
            epoch=epoch,
            step=step,
            images=source.images(order, start, stop, draws),
            unit_rows=torch.from_numpy(unit_rows),
            captions=torch.from_numpy(captions),
            tokens=tokens,
            caption_lengths=lengths,
        )

    return ahead(build, bounds, threads=source.threads)


def steps_per_epoch(table: CaptionTable, *, batch_size: int, captions_per_image: int = 1) -> int:
    """Number of batches in an epoch."""
    units = int(-(-table.caption_counts // captions_per_image).sum())
    return len(batch_bounds(units, batch_size))


def to_device(batch: CaptionBatch, device: torch.device) -> CaptionBatch:
    """The batch with everything but its lengths and caption indices on ``device``."""
    return dataclasses.replace(
        batch,
        images=batch.images.to(device, non_blocking=True),
        unit_rows=batch.unit_rows.to(device, non_blocking=True),
        tokens=batch.tokens.to(device, non_blocking=True),
    )
