import json
import pickle
from pathlib import Path

import pytest

from shards.dataset import open_split
from shards.errors import DamageError
from shards.json_files import sealed
from shards.layout import sidecar_path
from shards.sidecar import read_sidecar
from tests.conftest import Small


def test_samples_in_columns_equal_those_in_the_sidecar(small: Small) -> None:
    for shard in open_split(small.shards, "train").shards:
        rows = json.loads(sidecar_path(shard.path).read_text())["samples"]
        samples = shard.sidecar.samples
        assert shard.sidecar.content()["samples"] == rows
        assert [(s.key, s.captions, s.jpg.offset, s.json.crc32) for s in samples] == [(r[0], r[1], r[2], r[7]) for r in rows]
        assert list(samples[2:5]) == [samples[2], samples[3], samples[4]]
        assert samples[-1] == samples[len(samples) - 1]
        assert list(pickle.loads(pickle.dumps(samples[:3]))) == list(samples[:3])


@pytest.mark.parametrize("row", [["000000003", 1, 2], ["000000003", 5, 512, 10, 1, 2048, 10**30, 1], ["000000003", 5, 512, -1, 1, 2048, 10, 1], []])
def test_a_sidecar_with_an_impossible_row_is_damaged(small: Small, tmp_path: Path, row: list[object]) -> None:
    path = sidecar_path(open_split(small.shards, "train").shards[0].path)
    content = json.loads(path.read_text())
    del content["self_digest"]
    content["samples"][3] = row

    other = tmp_path / "train-000000.json"
    other.write_text(json.dumps(sealed(content)))
    with pytest.raises(DamageError, match=r"train-000000\.json: damaged sidecar"):
        read_sidecar(other)
