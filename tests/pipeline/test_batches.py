import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.encoder import with_crop
from model.networks import random_info
from model.vocabulary import END, PAD, START
from pipeline.batches import (
    Encoded,
    FeatureSource,
    ShardSource,
    batch_bounds,
    epoch_order,
    steps_per_epoch,
    training_batches,
)
from pipeline.vocab import vocabulary_of
from shards.caption_table import CaptionTable, table_from_records, table_of_split
from shards.errors import InputError
from shards.features import FeatureFile, Provenance, open_features, write_features
from shards.manifest import open_split
from tests.conftest import Small

PREPROCESSING = with_crop(random_info(64), size=64, mode="squash", filter="lanczos")


def table_with(counts: list[list[int]]) -> CaptionTable:
    """Shards of images with so many captions each."""
    number = iter(range(100_000))
    return table_from_records(
        [
            (str(next(number)), {"image_id": 1, "file_name": "x", "captions": [{"id": next(number), "text": "a", "tokens": ["a"]} for _ in range(n)]})
            for n in shard
        ]
        for shard in counts
    )


COUNTS = st.lists(st.lists(st.integers(1, 7), max_size=6), min_size=1, max_size=40).filter(lambda c: sum(map(len, c)) > 0)


@settings(max_examples=60, deadline=None)
@given(COUNTS, st.integers(0, 3), st.integers(1, 6))
def test_every_caption_comes_exactly_once_beside_its_image_at_any_k(counts: list[list[int]], epoch: int, k: int) -> None:
    table = table_with(counts)
    order = epoch_order(table, seed=1, epoch=epoch, captions_per_image=k)
    assert sorted(order.captions.tolist()) == list(range(table.captions))
    lengths = np.diff(order.offsets)
    assert lengths.min() >= 1
    assert lengths.max() <= k
    assert (table.image_rows[order.captions] == np.repeat(order.image_rows, lengths)).all()
    assert order.units == sum(-(-n // k) for shard in counts for n in shard)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    table = table_with([[5] * 20] * 5)
    first = epoch_order(table, seed=1, epoch=0)
    assert (epoch_order(table, seed=1, epoch=0).captions == first.captions).all()
    assert (epoch_order(table, seed=1, epoch=1).captions != first.captions).any()
    assert (epoch_order(table, seed=2, epoch=0).captions != first.captions).any()


def test_shards_are_visited_in_windows() -> None:
    table = table_with([[1] * 4] * 40)
    rows = epoch_order(table, seed=0, epoch=0).image_rows
    for start in (0, 64):
        assert len(set((rows[start : start + 64] // 4).tolist())) == 16


@pytest.mark.parametrize(("units", "size", "bounds"), [(6, 2, [(0, 2), (2, 4), (4, 6)]), (5, 2, [(0, 2), (2, 5)]), (1, 4, [(0, 1)]), (0, 4, [])])
def test_a_last_batch_of_one_joins_the_one_before(units: int, size: int, bounds: list[tuple[int, int]]) -> None:
    assert batch_bounds(units, size) == bounds


def test_tokens_are_start_words_end_and_padding(small: Small) -> None:
    table = open_features(small.features / "train.h5").table
    vocabulary = vocabulary_of(table, min_count=1).vocabulary
    captions = np.array([3, 0, 17])
    tokens, lengths = Encoded(table, vocabulary).batch(captions)
    for row, caption in enumerate(captions):
        words = vocabulary.decode(tokens[row].tolist())
        expected = [START, *table.caption_tokens(caption), END]
        assert words == expected + [PAD] * (len(words) - len(expected))
        assert lengths[row] == len(expected)


def test_a_caption_that_spells_a_special_word_cannot_end_a_sentence() -> None:
    records = [("0", {"image_id": 1, "file_name": "x", "captions": [{"id": 1, "text": "<end> a", "tokens": ["<end>", "a"]}]})]
    table = table_from_records([records])
    vocabulary = vocabulary_of(table, min_count=1).vocabulary
    tokens, _ = Encoded(table, vocabulary).batch(np.array([0]))
    assert vocabulary.decode(tokens[0].tolist()) == ["<start>", "<unk>", "a", "<end>"]


@pytest.mark.parametrize("k", [1, 3])
def test_raw_and_cached_see_the_same_pairs_in_the_same_order(small: Small, k: int) -> None:
    split = open_split(small.shards, "train")
    file = open_features(small.features / "train.h5")
    encoded = Encoded(file.table, vocabulary_of(file.table, min_count=1).vocabulary)
    raw = ShardSource(split, table_of_split(split), PREPROCESSING, "none")
    pairs = [list(training_batches(source, encoded, seed=3, epoch=1, batch_size=16, captions_per_image=k)) for source in (raw, FeatureSource(file))]
    assert len(pairs[0]) == len(pairs[1]) == steps_per_epoch(file.table, batch_size=16, captions_per_image=k)
    for ours, theirs in zip(*pairs, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.captions, theirs.captions)
        assert torch.equal(ours.unit_rows, theirs.unit_rows)
        assert ours.images.shape == (len(theirs.images), 56, 56, 3)


@pytest.mark.parametrize("augmentation", ["tutorial", "none"])
def test_batches_do_not_depend_on_threads_and_can_begin_anywhere(small: Small, augmentation: str) -> None:
    split = open_split(small.shards, "train")
    table = table_of_split(split)
    encoded = Encoded(table, vocabulary_of(table, min_count=1).vocabulary)
    streams = []
    for threads, first in ((0, 0), (1, 0), (4, 0), (2, 5)):
        source = ShardSource(split, table, PREPROCESSING, augmentation)  # type: ignore[arg-type]
        source.threads = threads
        streams.append(list(training_batches(source, encoded, seed=0, epoch=0, batch_size=16, first_step=first))[5 - first :])
    for stream in streams[1:]:
        for one, other in zip(streams[0], stream, strict=True):
            for field in dataclasses.fields(one):
                first_value, second_value = getattr(one, field.name), getattr(other, field.name)
                assert torch.equal(first_value, second_value) if isinstance(first_value, torch.Tensor) else first_value == second_value


def test_augmentation_crops_and_mirrors_within_the_image(small: Small) -> None:
    split = open_split(small.shards, "train")
    table = table_of_split(split)
    source = ShardSource(split, table, PREPROCESSING, "tutorial")
    order = epoch_order(table, seed=0, epoch=0)
    whole = source._pixels(int(order.image_rows[0]))
    for draws, expected in (
        ([0.0, 0.0, 0.9], whole[:56, :56]),
        ([0.999, 0.5, 0.9], whole[8:, 4:60]),
        ([0.0, 0.999, 0.1], whole[:56, 8:].flip(1)),
    ):
        assert torch.equal(source.images(order, 0, 1, np.array([draws]))[0], expected)


def test_a_single_captioned_image_is_refused() -> None:
    table = table_with([[1]])
    encoded = Encoded(table, vocabulary_of(table, min_count=1).vocabulary)
    split = ShardSource.__new__(ShardSource)
    split.table = table
    with pytest.raises(InputError, match="at least two"):
        training_batches(split, encoded, seed=0, epoch=0, batch_size=2)


def feature_file(tmp_path: Path, views: int) -> FeatureFile:
    """24 images of one caption each; the feature of image i in view v is 100 v + i."""
    table = table_with([[1] * 24])
    features = (100 * np.arange(views)[None, :, None] + np.arange(24)[:, None, None]).astype(np.float16)
    provenance = Provenance(
        backbone="resnet18",
        weights="random",
        weights_sha256="0",
        preprocessing={},
        views=tuple(map(str, range(views))),
        precision="fp32",
        arithmetic={},
        split="train",
        split_digest="0",
        versions={},
    )
    write_features(tmp_path / "train.h5", lambda: [(features, table)], dim=1, provenance=provenance)
    return open_features(tmp_path / "train.h5")


def test_training_draws_one_view_for_each_unit_and_epoch_and_evaluation_takes_their_mean(tmp_path: Path) -> None:
    file = feature_file(tmp_path, views=3)
    encoded = Encoded(file.table, vocabulary_of(file.table, min_count=1).vocabulary)

    def drawn(source: FeatureSource, epoch: int) -> dict[int, int]:
        batches = training_batches(source, encoded, seed=0, epoch=epoch, batch_size=5)
        values = torch.cat([batch.images for batch in batches]).squeeze(1).long().tolist()
        return {value % 100: value // 100 for value in values}

    source = FeatureSource(file, draw_views=True)
    epochs = [drawn(source, epoch) for epoch in range(30)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert drawn(source, 0) == epochs[0]
    assert epochs[0] != epochs[1]
    counts = np.bincount([view for epoch in epochs for view in epoch.values()], minlength=3)
    assert counts.min() > 200  # of 720, by a fair draw
    assert set(drawn(FeatureSource(file), 0).values()) == {1}  # of 0, 100 and 200
