"""Features give the same batches from memory and from their file; padding is masked; pooled decoders get the mean of the positions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.captions.vocabulary import vocabulary_of
from pipeline.loading.batches import EncodedCaptions, training_batches
from pipeline.loading.feature_source import READ_THREADS, FeatureSource, pooled_positions
from shards.errors import DamageError
from shards.feature_writer import write_features
from shards.features import FeatureFile, open_features
from tests.conftest import table_with
from tests.provenances import provenance

IMAGES, VIEWS, POSITIONS, DIM = 12, 3, 5, 4
COUNTS = np.array([5, 1, 2, 3, 4, 5, 5, 1, 2, 3, 4, 5], np.int32)


def feature_file(folder: Path, counts: "np.ndarray[tuple[int], np.dtype[np.int32]] | None" = None) -> FeatureFile:
    features = np.random.default_rng(0).standard_normal((IMAGES, VIEWS, POSITIONS, DIM)).astype(np.float16)
    if counts is not None:
        features[np.broadcast_to((np.arange(POSITIONS) >= counts[:, None])[:, None], features.shape[:3])] = 0
    made = provenance(layout="grid", views=tuple(map(str, range(VIEWS))))
    table = table_with([[2] * IMAGES])
    write_features(folder / "train.h5", lambda: [(features, table)], shape=(POSITIONS, DIM), provenance=made, counts=counts)
    return open_features(folder / "train.h5")


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("sample_views", [False, True])
def test_the_batches_are_the_same_from_memory_and_from_the_file(tmp_path: Path, sample_views: bool, pooled: bool) -> None:
    file = feature_file(tmp_path, COUNTS)
    encoded = EncodedCaptions(file.table, vocabulary_of(file.table, min_count=1).vocabulary)
    sources = [FeatureSource(file, sample_views=sample_views, pooled=pooled, memory_bytes=memory) for memory in (None, 0)]
    assert [source.threads for source in sources] == [0, READ_THREADS]
    for epoch in range(2):
        pairs = zip(*(training_batches(source, encoded, seed=1, epoch=epoch, batch_size=5) for source in sources), strict=True)
        for one, two in pairs:
            assert one.images.shape == (len(one.unit_rows), 1 if pooled else POSITIONS, DIM)
            assert torch.equal(one.images, two.images)
            assert (one.mask is None) == (two.mask is None) == pooled
            if one.mask is not None and two.mask is not None:
                assert torch.equal(one.mask, two.mask)
                assert not one.images[~one.mask].any()


def test_each_unit_has_the_features_and_the_mask_of_its_image_and_view(tmp_path: Path) -> None:
    file = feature_file(tmp_path, COUNTS)
    rows, draws = np.array([7, 0, 7]), np.array([[0.0, 0, 0], [0.5, 0, 0], [0.99, 0, 0]])
    for memory in (None, 0):
        source = FeatureSource(file, sample_views=True, memory_bytes=memory)
        np.testing.assert_array_equal(source.images(rows, draws), np.stack([file.features[7, 0], file.features[0, 1], file.features[7, 2]]))
        mask = source.mask(rows)
        assert mask is not None
        assert mask.sum(dim=1).tolist() == [1, 5, 1]
        means = FeatureSource(file, memory_bytes=memory).images(rows, draws)
        np.testing.assert_array_equal(means[0], file.features[7].mean(axis=0, dtype=np.float32).astype(np.float16))


def test_files_in_which_all_positions_are_real_have_no_mask(tmp_path: Path) -> None:
    assert FeatureSource(feature_file(tmp_path)).mask(np.array([0, 3])) is None


def test_the_mean_over_the_positions_counts_the_real_ones() -> None:
    features = np.array([[[[2.0], [4.0], [9.0]]], [[[3.0], [9.0], [9.0]]]], np.float16)
    assert pooled_positions(features, np.array([2, 1], np.int32)).tolist() == [[[[3.0]]], [[[3.0]]]]


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    source = FeatureSource(feature_file(tmp_path), sample_views=True, memory_bytes=0)
    with (tmp_path / "train.h5").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(DamageError, match=r"train\.h5: became shorter while it was read"):
        source.images(np.array([IMAGES - 1]), np.zeros((1, 3)))


def test_numbers_of_positions_that_do_not_fit_are_damage(tmp_path: Path) -> None:
    with pytest.raises(DamageError, match="does not have a number between 1 and 5 for each image"):
        feature_file(tmp_path, np.where(COUNTS == 5, 6, COUNTS).astype(np.int32))
