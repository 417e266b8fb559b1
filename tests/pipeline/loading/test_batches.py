from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.vocabulary import END, PAD, START
from pipeline.captions.vocabulary import vocabulary_of
from pipeline.loading.batches import CaptionBatch, EncodedCaptions, training_batches
from pipeline.loading.feature_source import FeatureSource
from pipeline.loading.order import RankSlice, epoch_order, steps_per_epoch
from pipeline.loading.sources import Augmentation, ShardSource
from shards.caption_table import table_from_records, table_of_split
from shards.dataset import open_split
from shards.errors import InputError
from shards.features import open_features
from tests.conftest import PREPROCESSING, Small, shard_small, table_with


def test_tokens_are_start_words_end_and_padding(small: Small) -> None:
    table = open_features(small.features / "train.h5").table
    vocabulary = vocabulary_of(table, min_count=1).vocabulary
    captions = np.array([3, 0, 17])
    tokens, lengths = EncodedCaptions(table, vocabulary).batch(captions)
    for row, caption in enumerate(captions):
        words = vocabulary.decode(tokens[row].tolist())
        expected = [START, *table.caption_tokens(caption), END]
        assert words == expected + [PAD] * (len(words) - len(expected))
        assert lengths[row] == len(expected)


def test_a_caption_that_spells_a_special_word_cannot_end_a_sentence() -> None:
    records = [("0", {"image_id": 1, "file_name": "x", "captions": [{"id": 1, "text": "<end> a", "tokens": ["<end>", "a"]}]})]
    table = table_from_records([records])
    vocabulary = vocabulary_of(table, min_count=1).vocabulary
    tokens, _ = EncodedCaptions(table, vocabulary).batch(np.array([0]))
    assert vocabulary.decode(tokens[0].tolist()) == ["<start>", "<unk>", "a", "<end>"]


@pytest.mark.parametrize("k", [1, 3])
def test_raw_and_cached_see_the_same_pairs_in_the_same_order(small: Small, k: int) -> None:
    split = open_split(small.shards, "train")
    file = open_features(small.features / "train.h5")
    encoded = EncodedCaptions(file.table, vocabulary_of(file.table, min_count=1).vocabulary)
    raw = ShardSource(split, table_of_split(split), PREPROCESSING, "none")
    pairs = [list(training_batches(source, encoded, seed=3, epoch=1, batch_size=16, captions_per_image=k)) for source in (raw, FeatureSource(file))]
    assert len(pairs[0]) == len(pairs[1]) == steps_per_epoch(file.table, batch_size=16, captions_per_image=k)
    for ours, theirs in zip(*pairs, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.captions, theirs.captions)
        assert torch.equal(ours.unit_rows, theirs.unit_rows)
        assert ours.images.shape == (len(theirs.images), 56, 56, 3)


@pytest.mark.parametrize("augmentation", ["tutorial", "none"])
def test_batches_do_not_depend_on_threads_and_can_begin_anywhere(small: Small, augmentation: Augmentation) -> None:
    split = open_split(small.shards, "train")
    table = table_of_split(split)
    encoded = EncodedCaptions(table, vocabulary_of(table, min_count=1).vocabulary)
    streams = []
    for threads, first in ((0, 0), (1, 0), (2, 0), (4, 0), (2, 5)):
        source = ShardSource(split, table, PREPROCESSING, augmentation, threads=threads)
        streams.append(list(training_batches(source, encoded, seed=0, epoch=0, batch_size=16, first_step=first))[5 - first :])
    for stream in streams[1:]:
        for one, other in zip(streams[0], stream, strict=True):
            for field in fields(one):
                first_value, second_value = getattr(one, field.name), getattr(other, field.name)
                assert torch.equal(first_value, second_value) if isinstance(first_value, torch.Tensor) else first_value == second_value


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("shard_size", [7, 10, 36])
@pytest.mark.parametrize("cached", [True, False])
def test_processes_share_the_same_batches_in_as_many_steps_each(small: Small, tmp_path: Path, k: int, shard_size: int, cached: bool) -> None:
    shard_small(small.source, tmp_path / "shards", "train", shard_size=shard_size)
    split = open_split(tmp_path / "shards", "train")  # 6, 4 and 1 shards of 36 images
    table = table_of_split(split)
    encoded = EncodedCaptions(table, vocabulary_of(table, min_count=1).vocabulary)
    file = open_features(small.features / "train.h5")

    def stream(part: RankSlice) -> list[CaptionBatch]:
        # Each process has a source of its own.
        source = FeatureSource(replace(file, table=table), sample_views=True) if cached else ShardSource(split, table, PREPROCESSING, "tutorial")
        return list(training_batches(source, encoded, seed=2, epoch=1, batch_size=16, captions_per_image=k, rank_slice=part))

    alone = stream(RankSlice())
    assert sorted(caption for batch in alone for caption in batch.captions.tolist()) == list(range(table.captions))
    for size in (2, 3):
        streams = [stream(RankSlice(rank=rank, size=size)) for rank in range(size)]
        assert {len(steps) for steps in streams} == {len(alone)}
        for whole, *parts in zip(alone, *streams, strict=True):
            assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
            assert sorted(c for part in parts for c in part.captions.tolist()) == sorted(whole.captions.tolist())
            assert {(part.batch_captions, part.batch_tokens) for part in parts} == {(len(whole.captions), int(whole.caption_lengths.sum()))}
            for part in parts:
                images = table.image_rows[part.captions.numpy()]
                assert all(len(set(images[part.unit_rows.numpy() == row])) == 1 for row in range(len(part.images)))


def test_two_epochs_hold_the_same_captions_in_another_order(small: Small) -> None:
    file = open_features(small.features / "train.h5")
    encoded = EncodedCaptions(file.table, vocabulary_of(file.table, min_count=1).vocabulary)
    epochs = [training_batches(FeatureSource(file), encoded, seed=0, epoch=epoch, batch_size=16) for epoch in (0, 1)]
    first, second = (torch.cat([batch.captions for batch in epoch]) for epoch in epochs)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)


def test_captions_of_a_batch_stand_longest_first(small: Small) -> None:
    file = open_features(small.features / "train.h5")
    encoded = EncodedCaptions(file.table, vocabulary_of(file.table, min_count=1).vocabulary)
    for batch in training_batches(FeatureSource(file), encoded, seed=0, epoch=0, batch_size=16):
        assert (batch.caption_lengths.diff() <= 0).all()
        assert torch.equal((batch.tokens != 0).sum(dim=1), batch.caption_lengths)


def test_a_single_captioned_image_is_refused() -> None:
    table = table_with([[1]])
    encoded = EncodedCaptions(table, vocabulary_of(table, min_count=1).vocabulary)
    split = ShardSource.__new__(ShardSource)
    split.table = table
    with pytest.raises(InputError, match="at least two"):
        training_batches(split, encoded, seed=0, epoch=0, batch_size=2)


def test_an_epoch_that_begins_in_its_middle_asks_for_what_is_left_of_it_alone(small: Small) -> None:
    file = open_features(small.features / "train.h5")

    class Visited(FeatureSource):
        asked: NDArray[np.int64]
        reached: list[int]

        @contextmanager
        def visit(self, rows: NDArray[np.int64]) -> Iterator[Callable[[int], None]]:
            self.asked, self.reached = rows, []
            yield self.reached.append

    source = Visited(file)
    encoded = EncodedCaptions(file.table, vocabulary_of(file.table, min_count=1).vocabulary)
    batches = list(training_batches(source, encoded, seed=0, epoch=0, batch_size=16, first_step=9))
    order = epoch_order(file.table, seed=0, epoch=0)
    assert source.asked.tolist() == order.image_rows[9 * 16 :].tolist()
    assert source.reached == [16 * number for number in range(len(batches))]
