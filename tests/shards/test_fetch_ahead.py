"""Shards are fetched before they are read, within the bound of the cache."""

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shards.dataset import Shard, Split, open_split
from shards.errors import InputError
from shards.fetch_ahead import FetchAhead
from tests.shards.shard_server import Server, largest, opened, tar_bytes, wait_until


def names(shards: tuple[Shard, ...] | list[Shard]) -> set[str]:
    return {shard.path.name for shard in shards}


def there(split: Split) -> set[str]:
    return {path.name for path in split.folder.glob("*.tar")}


def test_fetching_ahead_respects_the_bound_and_fetches_nothing_twice(server: Server, fine: Path, tmp_path: Path) -> None:
    bound = 5 * largest(fine)
    split = opened(server, tmp_path, bound)
    visited = np.random.default_rng(0).permutation(len(split.shards))
    order = [split.shards[index] for index in visited]
    with FetchAhead(order, window=2) as ahead:
        for position in range(0, len(order), 2):
            ahead.move_to(position)
            for shard in order[position : position + 2] * 3:
                shard.open().close()
                assert tar_bytes(split.folder) <= bound
            wait_until(lambda first=position: names(order[first : first + 4]) <= there(split))  # type: ignore[misc]
    assert not ahead._thread.is_alive()
    assert server.tar_gets() == dict.fromkeys(names(order), 1)


def test_fetching_ahead_stops_at_a_bounded_number_and_never_removes_what_is_in_use(server: Server, fine: Path, tmp_path: Path) -> None:
    bound = 3 * largest(fine) + 10
    split = opened(server, tmp_path, bound)
    order = split.shards
    with FetchAhead(order, window=2) as ahead:
        wait_until(lambda: names(order[:3]) <= there(split))
        time.sleep(0.2)
        assert there(split) == names(order[:3])
        assert names(order[:2]) <= there(split)
        for shard in order[:2]:  # as if they had not been used for long
            os.utime(shard.path, (0, 0))
        ahead.move_to(1)
        wait_until(lambda: names(order[1:4]) <= there(split))
    time.sleep(0.1)
    assert set(server.tar_gets().values()) == {1}
    assert sum(server.tar_gets().values()) == 4


def test_a_failed_fetch_is_an_error_for_the_reader(server: Server, fine: Path, tmp_path: Path) -> None:
    server.root = shutil.copytree(fine, tmp_path / "part")
    (server.root / "train-000001.tar").unlink()
    split = opened(server, tmp_path / "cache")
    with FetchAhead(split.shards, window=2):
        wait_until(lambda: names([split.shards[0], *split.shards[2:4]]) <= there(split))
        with pytest.raises(InputError, match=r"train-000001\.tar: no such file"):
            split.shards[1].open()


def test_closing_cancels_a_tar_in_the_middle(server: Server, tmp_path: Path) -> None:
    server.truncated["train-000000.tar"] = 99
    split = opened(server, tmp_path)
    ahead = FetchAhead(split.shards, window=2)
    wait_until(lambda: server.gets["train-000000.tar"] > 0)
    ahead.close()
    assert not ahead._thread.is_alive()


def test_local_shards_start_no_thread(fine: Path) -> None:
    shards = open_split(fine, "train").shards
    before = threading.active_count()
    with FetchAhead(shards, window=2) as ahead:
        ahead.move_to(3)
        assert threading.active_count() == before
