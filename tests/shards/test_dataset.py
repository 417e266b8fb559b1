from shards.dataset import open_split
from tests.conftest import Small


def test_a_sample_is_found_by_its_row_in_the_split(small: Small) -> None:
    split = open_split(small.shards, "train")
    expected = [(shard.path, sample) for shard in split.shards for sample in shard.sidecar.samples]
    assert [(shard.path, sample) for shard, sample in map(split.sample, range(split.images))] == expected
