import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.features.pixel_batches import decode_into, pixel_batches
from pipeline.features.views import view_names
from pipeline.sharding.read_samples import decode_sample, read_samples, shard_samples
from shards.dataset import open_split
from shards.errors import DamageError, ResourceError
from tests.conftest import Small


def test_samples_read_by_their_places_are_those_that_webdataset_finds(small: Small) -> None:
    for shard in open_split(small.shards, "train").shards:
        assert list(read_samples(shard, shard.sidecar.samples)) == list(shard_samples(shard))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_come_in_order_and_hold_their_own_pixels_however_slow_the_consumer(small: Small, workers: int) -> None:
    shards = open_split(small.shards, "train").shards
    views = view_names("flip")
    expected = [(sample.key, decode_sample(shard, sample.key, jpeg)[4:60, 4:60]) for shard in shards for sample, jpeg, _ in shard_samples(shard)]
    keys: list[str] = []
    sizes: list[tuple[int, int, bool]] = []
    for batch in pixel_batches(shards, batch_size=3, crop=56, views=views, workers=workers):
        if len(sizes) % 5 == 0:
            time.sleep(0.05)  # the workers run as far ahead as they may
        for (key, record), pixels in zip(batch.samples, np.concatenate(batch.pieces), strict=True):
            name, wanted = expected[len(keys)]
            assert key == name
            assert record["captions"]
            np.testing.assert_array_equal(pixels[0], wanted)
            np.testing.assert_array_equal(pixels[1], wanted[:, ::-1])
            keys.append(key)
        sizes.append((batch.shard, len(batch.samples), batch.last))
    assert sizes == [(s, n, last) for s in range(3) for n, last in ((3, False), (3, False), (3, False), (1, True))] + [(3, 3, False), (3, 3, True)]


def test_a_batch_of_several_pieces_holds_all_of_them_in_order(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_split(small.shards, "train").shards
    whole = {
        key: pixels.copy()
        for b in pixel_batches(shards, batch_size=32, crop=56, views=("center",), workers=1)
        for (key, _), pixels in zip(b.samples, np.concatenate(b.pieces), strict=True)
    }
    monkeypatch.setattr("pipeline.features.pixel_batches.PIECE_IMAGES", 2)
    sizes = []
    for batch in pixel_batches(shards, batch_size=7, crop=56, views=("center",), workers=2):
        sizes.append([len(piece) for piece in batch.pieces])
        for (key, _), pixels in zip(batch.samples, np.concatenate(batch.pieces), strict=True):
            np.testing.assert_array_equal(pixels, whole.pop(key))
    assert sizes == [[2, 2, 2, 1], [2, 1]] * 3 + [[2, 2, 2]]
    assert not whole


def test_a_sample_that_is_not_what_the_sidecar_says_is_named(small: Small) -> None:
    shard = open_split(small.shards, "train").shards[0]
    samples = shard.sidecar.samples
    swapped = [type(samples[0])(key=samples[0].key, captions=1, jpg=samples[1].jpg, json=samples[0].jpg)]
    with pytest.raises(DamageError, match=r"train-000000\.tar.*000000000"):
        decode_into(np.empty((1, 1, 56, 56, 3), np.uint8), shard, swapped, ("center",))
    with pytest.raises(DamageError, match="is missing"):
        list(read_samples(type(shard)(path=Path("/nowhere/train-000000.tar"), sidecar=shard.sidecar), samples))


def test_a_stored_image_smaller_than_the_crop_is_damage_by_name(small: Small) -> None:
    shard = open_split(small.shards, "train").shards[0]
    with pytest.raises(DamageError, match=r"train-000000\.tar: sample 000000000: 64x64 pixels are too few for a crop of 65"):
        decode_into(np.empty((1, 1, 65, 65, 3), np.uint8), shard, shard.sidecar.samples[:1], ("center",))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_worker_is_an_error_with_advice(small: Small) -> None:
    batches = pixel_batches(open_split(small.shards, "train").shards, batch_size=1, crop=56, views=("center",), workers=1)
    next(batches)
    victims = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and _is_worker(int(p.name))]
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match="fewer `workers`"):
        list(batches)


def _is_worker(pid: int) -> bool:
    """A child of this process's fork server, which has this process as its parent."""
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        grandparent = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return False
    return grandparent == os.getpid()
