from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.previews import PREVIEWS, previews_path, read_previews, split_previews, spread_rows, write_previews
from shards.dataset import open_split
from shards.errors import OccupiedError
from shards.features import open_features
from tests.caching import cache_features
from tests.conftest import Small


@given(st.integers(0, 300), st.integers(0, 50))
def test_rows_are_spread_evenly_and_begin_at_the_first(count: int, wanted: int) -> None:
    rows = spread_rows(count, wanted)
    assert len(set(rows.tolist())) == len(rows) == min(count, wanted)
    if len(rows) > 1:
        gaps = np.diff(np.append(rows, count))
        assert rows[0] == 0
        assert gaps.max() - gaps.min() <= 1


def test_caching_leaves_pictures_beside_the_features_that_equal_the_shards_images(small: Small) -> None:
    split = open_split(small.shards, "train")
    keys = open_features(small.features / "train.h5").table.keys
    rows = spread_rows(split.images, PREVIEWS).tolist()
    assert len(rows) == PREVIEWS
    from_shards = split_previews(split, rows)
    for found, expected in zip(read_previews(small.features, "train", [keys[row] for row in rows]), from_shards, strict=True):
        assert found is not None
        assert expected is not None
        assert np.array_equal(found, expected)


def test_pictures_that_are_missing_or_damaged_are_none(small: Small, tmp_path: Path) -> None:
    split = open_split(small.shards, "train")
    write_previews(split, tmp_path)
    assert read_previews(tmp_path, "train", ["000000001", "../../etc/passwd"]) == [None, None]
    assert read_previews(tmp_path, "val", ["000000000"]) == [None]
    path = previews_path(tmp_path, "train")
    for content in (path.read_bytes()[:700], b"no tar" * 200, path.read_bytes()[:512] + bytes(100_000)):
        path.write_bytes(content)
        assert read_previews(tmp_path, "train", ["000000000"]) == [None]


def test_pictures_that_are_gone_come_back_when_features_are_cached_again(small: Small, tmp_path: Path) -> None:
    options = {"shards": small.shards, "out": tmp_path, "splits": ["val"], "backbone": "squeezenet1_1", "weights": "random", "device": "cpu"}
    cache_features(**options)  # type: ignore[arg-type]
    before = previews_path(tmp_path, "val").read_bytes()
    previews_path(tmp_path, "val").unlink()
    (summary,) = cache_features(**options)  # type: ignore[arg-type]
    assert summary.kept
    assert previews_path(tmp_path, "val").read_bytes() == before
    (tmp_path / "my.tar").write_bytes(b"")
    with pytest.raises(OccupiedError, match=r"my\.tar"):
        cache_features(**options)  # type: ignore[arg-type]
