"""One stream of batches from two sources: shards (raw pixels) or a feature file (cached features).

Both take their order from :mod:`pipeline.loading.order`, so raw and cached training see the same pairs in the same order. The
captions of a batch are sorted by descending length, as packed sequences need them; which captions are in a batch does not depend on that.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.preprocessing import mirror
from model.vocabulary import END, PAD, START, UNK, Vocabulary
from pipeline.execution.prefetch import map_ahead
from pipeline.loading.order import RankSlice, batch_bounds, epoch_order, unit_draws
from pipeline.loading.sources import Source
from shards.caption_table import CaptionTable
from shards.errors import InputError

VAL_BATCH_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class CaptionBatch:
    """The input of one training step, or one rank's slice of it.

    Attributes:
        epoch, step: Position in training; ``step`` counts from 0 in each epoch.
        images: float16 (units, positions, dim) features, or uint8 (units, crop, crop, 3) pixels.
        mask: bool (units, positions): which positions are real and not padding; None: all of them.
        mirrored: bool (units,): which images :func:`to_device` mirrors; None: no image.
        unit_rows: int64 (captions,): the row of ``images`` that each caption belongs to.
        captions: int64 (captions,): indices into the caption table, longest caption first.
        tokens: int64 (captions, longest): [<start>, w1, ..., wn, <end>, <pad>, ...].
        caption_lengths: int64 (captions,): n + 2, on the CPU, in descending order.
        batch_captions, batch_tokens: Number of captions and tokens in the whole batch, over all ranks.
    """

    epoch: int
    step: int
    images: Tensor
    mask: Tensor | None
    mirrored: Tensor | None
    unit_rows: Tensor
    captions: Tensor
    tokens: Tensor
    caption_lengths: Tensor
    batch_captions: int
    batch_tokens: int


class EncodedCaptions:
    """A table's captions as word ids, on the training device.

    Each caption is stored as [<start>, w1, ..., wn, <end>]; ``lengths`` is int64 (captions,): n + 2, on the CPU.
    """

    def __init__(self, table: CaptionTable, vocabulary: Vocabulary, device: torch.device | None = None) -> None:
        unknown = vocabulary.id(UNK)
        self.pad = vocabulary.id(PAD)
        # Words in a caption that look like special tokens are not special tokens: they are unknown words.
        marks = {PAD, START, END}
        word_ids = np.array([unknown if word in marks else vocabulary.id(word) for word in table.words], dtype=np.int64)
        self.lengths = np.diff(table.offsets) + 2
        ends = np.cumsum(self.lengths)
        ids = np.empty(int(self.lengths.sum()), dtype=np.int64)
        begins = ends - self.lengths
        real = np.ones(len(ids), dtype=bool)
        real[begins] = real[ends - 1] = False
        ids[begins], ids[ends - 1] = vocabulary.id(START), vocabulary.id(END)
        ids[real] = word_ids[table.tokens] if len(table.tokens) else 0
        self.ids, self.begins = torch.from_numpy(ids).to(device), torch.from_numpy(begins).to(device)

    def batch(self, captions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Padded tokens of some captions, int64 (captions, longest) on the device, and their lengths, int64 (captions,) on the CPU."""
        device = self.ids.device
        lengths = torch.from_numpy(self.lengths[captions])
        place = torch.arange(int(lengths.max()) if len(lengths) else 0, device=device)
        begins = self.begins[torch.from_numpy(captions).to(device, non_blocking=True)]
        tokens = self.ids[(begins[:, None] + place).clamp_(max=len(self.ids) - 1)]
        return tokens.masked_fill_(place >= lengths.to(device, non_blocking=True)[:, None], self.pad), lengths


def training_batches(
    source: Source,
    encoded: EncodedCaptions,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    captions_per_image: int = 1,
    first_step: int = 0,
    rank_slice: RankSlice | None = None,
) -> Generator[CaptionBatch, None, None]:
    """The batches of one epoch, from ``first_step`` on.

    Args:
        rank_slice: Which slice of every batch; by default the whole batch. The batches themselves do not depend on it.

    Raises:
        InputError: Fewer than two units: BatchNorm needs two images.
        DamageError: A shard is damaged.
    """
    order = epoch_order(source.table, seed=seed, epoch=epoch, captions_per_image=captions_per_image)
    check_units(order.units)
    draws = unit_draws(order.units, seed=seed, epoch=epoch)
    bounds = list(enumerate(batch_bounds(order.units, batch_size)))[first_step:]
    own = rank_slice or RankSlice()

    def build(item: tuple[int, tuple[int, int]]) -> CaptionBatch:
        step, whole = item
        start, stop = own.of(*whole)
        unit_rows = np.repeat(np.arange(stop - start), np.diff(order.offsets[start : stop + 1]))
        batch = _with_captions(encoded, order.captions[order.offsets[start] : order.offsets[stop]], unit_rows)
        everything = order.captions[order.offsets[whole[0]] : order.offsets[whole[1]]]
        return replace(
            batch,
            epoch=epoch,
            step=step,
            images=source.images(order.image_rows[start:stop], draws[start:stop]),
            mask=source.mask(order.image_rows[start:stop]),
            mirrored=source.mirrored(draws[start:stop]),
            batch_captions=len(everything),
            batch_tokens=int(encoded.lengths[everything].sum()),
        )

    def stream() -> Generator[CaptionBatch, None, None]:
        first_unit = bounds[0][1][0] if bounds else order.units
        with source.visit(order.image_rows[first_unit:]) as reached, closing(map_ahead(build, bounds, threads=source.threads)) as batches:
            for (_, (start, _)), batch in zip(bounds, batches, strict=True):
                reached(start - first_unit)
                yield batch

    return stream()


def check_units(units: int) -> None:
    """Check that an epoch can be trained on.

    Raises:
        InputError: Fewer than two units: BatchNorm needs two images.
    """
    if units < 2:
        raise InputError(f"Training needs at least two captioned images, found {units}: BatchNorm cannot normalise a single image.")


def table_batches(source: Source, encoded: EncodedCaptions, rows: NDArray[np.int64]) -> Generator[CaptionBatch, None, None]:
    """The images at ``rows``, in ascending order, with all their captions: the input of validation."""
    ends = np.cumsum(source.table.caption_counts)
    begins = ends - source.table.caption_counts

    def build(start: int) -> CaptionBatch:
        chosen = rows[start : start + VAL_BATCH_IMAGES]
        counts = source.table.caption_counts[chosen]
        captions = np.concatenate([np.arange(begins[row], ends[row]) for row in chosen])
        batch = _with_captions(encoded, captions, np.repeat(np.arange(len(chosen)), counts))
        return replace(batch, images=source.images(chosen, np.zeros((len(chosen), 3))), mask=source.mask(chosen))

    return map_ahead(build, range(0, len(rows), VAL_BATCH_IMAGES), threads=source.threads)


def _with_captions(encoded: EncodedCaptions, captions: NDArray[np.int64], unit_rows: NDArray[np.int64]) -> CaptionBatch:
    longest_first = np.argsort(-encoded.lengths[captions], kind="stable")
    captions, unit_rows = captions[longest_first], unit_rows[longest_first]
    tokens, lengths = encoded.batch(captions)
    return CaptionBatch(
        epoch=0,
        step=0,
        images=torch.empty(0),
        mask=None,
        mirrored=None,
        unit_rows=torch.from_numpy(unit_rows),
        captions=torch.from_numpy(captions),
        tokens=tokens,
        caption_lengths=lengths,
        batch_captions=len(captions),
        batch_tokens=int(lengths.sum()),
    )


def to_device(batch: CaptionBatch, device: torch.device) -> CaptionBatch:
    """Move a batch to ``device``, except its lengths and caption indices, and mirror its images."""
    images = batch.images.to(device, non_blocking=True)
    return replace(
        batch,
        images=images if batch.mirrored is None else mirror(images, batch.mirrored.to(device, non_blocking=True)),
        mask=None if batch.mask is None else batch.mask.to(device, non_blocking=True),
        mirrored=None,
        unit_rows=batch.unit_rows.to(device, non_blocking=True),
        tokens=batch.tokens.to(device, non_blocking=True),
    )
