from pathlib import Path

import numpy as np
import pytest
import torch

from model.preprocessing import mirror
from pipeline.captions.vocabulary import vocabulary_of
from pipeline.images.decode import decode_image
from pipeline.loading.batches import EncodedCaptions, to_device, training_batches
from pipeline.loading.feature_source import FeatureSource
from pipeline.loading.sources import OPEN_FILES, ShardSource
from shards.caption_table import table_of_split
from shards.dataset import open_split
from shards.errors import DamageError
from shards.feature_writer import write_features
from shards.features import FeatureFile, open_features
from shards.tar import read_member
from tests.conftest import PREPROCESSING, Small, shard_small, table_with
from tests.provenances import provenance


def test_augmentation_crops_within_the_image_and_the_device_mirrors(small: Small) -> None:
    split = open_split(small.shards, "train")
    table = table_of_split(split)
    source = ShardSource(split, table, PREPROCESSING, "tutorial")
    whole = torch.from_numpy(source._pixels(5).copy())
    draws = np.array([[0.0, 0.0, 0.9], [0.999, 0.5, 0.5], [0.0, 0.999, 0.1]])
    found = source.images(np.array([5, 5, 5]), draws)
    for pixels, expected in zip(found, (whole[:56, :56], whole[8:, 4:60], whole[:56, 8:]), strict=True):
        assert torch.equal(pixels, expected)
    mirrored = source.mirrored(draws)
    assert mirrored is not None
    assert mirrored.tolist() == [False, False, True]
    assert torch.equal(mirror(found, mirrored)[2], whole[:56, 8:].flip(1))
    assert ShardSource(split, table, PREPROCESSING, "none").mirrored(draws) is None


def test_batches_are_mirrored_on_the_device_as_their_epoch_says(small: Small) -> None:
    split = open_split(small.shards, "train")
    table = table_of_split(split)
    encoded = EncodedCaptions(table, vocabulary_of(table, min_count=1).vocabulary)
    batch = next(training_batches(ShardSource(split, table, PREPROCESSING, "tutorial"), encoded, seed=0, epoch=0, batch_size=16))
    assert batch.mirrored is not None
    assert 0 < int(batch.mirrored.sum()) < 16
    there = to_device(batch, torch.device("cpu"))
    assert there.mirrored is None
    for row, turned in enumerate(batch.mirrored.tolist()):
        assert torch.equal(there.images[row], batch.images[row].flip(1) if turned else batch.images[row])


def test_pixels_of_many_units_are_those_of_each_image_decoded_alone(small: Small) -> None:
    split = open_split(small.shards, "train")
    source = ShardSource(split, table_of_split(split), PREPROCESSING, "none")
    rows = np.array([9, 3, 3, 30, 9, 0])
    found = source.images(rows, np.zeros((6, 3)))
    for row, pixels in zip(rows.tolist(), found, strict=True):
        shard, sample = split.sample(row)
        with shard.path.open("rb") as file:
            jpeg = read_member(file, shard, sample.key, "jpg", sample.jpg)
        assert torch.equal(pixels, torch.from_numpy(np.array(decode_image(jpeg, "it").image)[4:60, 4:60]))


def test_more_shards_than_may_be_open_are_read_as_well(small: Small, tmp_path: Path) -> None:
    shard_small(small.source, tmp_path / "shards", "train", shard_size=1)
    split = open_split(tmp_path / "shards", "train")
    assert len(split.shards) > OPEN_FILES
    source = ShardSource(split, table_of_split(split), PREPROCESSING, "none")
    whole = open_split(small.shards, "train")
    rows = np.arange(len(split.shards))
    expected = ShardSource(whole, table_of_split(whole), PREPROCESSING, "none").images(rows, np.zeros((len(rows), 3)))
    for _ in range(2):
        assert torch.equal(source.images(rows, np.zeros((len(rows), 3))), expected)


def test_an_image_smaller_than_the_crop_is_damage_by_name(small: Small) -> None:
    split = open_split(small.shards, "train")
    wanted = PREPROCESSING.__class__(**{**vars(PREPROCESSING), "size": 80, "crop": 72})
    source = ShardSource(split, table_of_split(split), wanted, "tutorial")
    with pytest.raises(DamageError, match=r"train-000000\.tar: sample 000000003: 64x64 pixels are too few for a crop of 72"):
        source.images(np.array([3]), np.zeros((1, 3)))


def feature_file(tmp_path: Path, views: int) -> FeatureFile:
    """24 images of one caption each; the feature of image i in view v is 100 v + i."""
    table = table_with([[1] * 24])
    features = (100 * np.arange(views)[None, :, None] + np.arange(24)[:, None, None])[..., None].astype(np.float16)
    made = provenance(views=tuple(map(str, range(views))))
    write_features(tmp_path / "train.h5", lambda: [(features, table)], shape=(1, 1), provenance=made)
    return open_features(tmp_path / "train.h5")


def test_training_draws_one_view_for_each_unit_and_epoch_and_evaluation_takes_their_mean(tmp_path: Path) -> None:
    file = feature_file(tmp_path, views=3)
    encoded = EncodedCaptions(file.table, vocabulary_of(file.table, min_count=1).vocabulary)

    def drawn(source: FeatureSource, epoch: int) -> dict[int, int]:
        batches = training_batches(source, encoded, seed=0, epoch=epoch, batch_size=5)
        values = torch.cat([batch.images for batch in batches]).flatten().long().tolist()
        return {value % 100: value // 100 for value in values}

    source = FeatureSource(file, sample_views=True)
    epochs = [drawn(source, epoch) for epoch in range(30)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert drawn(source, 0) == epochs[0]
    assert epochs[0] != epochs[1]
    counts = np.bincount([view for epoch in epochs for view in epoch.values()], minlength=3)
    assert counts.min() > 200  # of 720, by a fair draw
    assert set(drawn(FeatureSource(file), 0).values()) == {1}  # of 0, 100 and 200
