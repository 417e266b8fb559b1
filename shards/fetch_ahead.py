"""Fetch the remote shards of an epoch ahead of their use, in a thread."""

import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from shards.dataset import Shard
from shards.errors import CapstreamError
from shards.fetch import FetchCancelledError
from shards.mirror import fetch_tar, mark_used

# A fetch notices between two chunks that it was cancelled.
JOIN_SECONDS = 5.0


class FetchAhead:
    """Fetches an epoch's remote shards before they are read. Does nothing for local shards.

    At position i the shards ``order[i : i + window]`` are in use. They and up to ``window`` shards after them are fetched, in order, as long
    as the cache can hold all of them at once. None of these is removed to free space for another. A shard that cannot be fetched is skipped:
    its reader tries again, and raises the error.

    Args:
        order: The shards in the order in which they are read: those of an epoch, ideally followed by the first ones of the next epoch.
        window: How many shards are in use at a time.

    Example:
        Report the position where batches are consumed, not where they are prefetched: a shard before it may be removed. ::

            order = [split.shards[index] for index in visited]
            with FetchAhead(order, window=WINDOW_SHARDS) as ahead:
                for batch in batches:
                    ahead.move_to(first_shard_of_the_batchs_window)
                    step(batch)
    """

    def __init__(self, order: Sequence[Shard], *, window: int) -> None:
        self._order = [shard for shard in order if shard.mirror is not None]
        self._window = window
        self._position = 0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capstream-fetch-ahead", daemon=True)
        if self._order:
            self._thread.start()

    def move_to(self, position: int) -> None:
        """Report that the window of shards in use now begins at ``position``. Costs nothing if that is unchanged."""
        if position == self._position or not self._order:
            return
        with self._changed:
            self._position = position
            self._changed.notify()

    def close(self) -> None:
        """Stop fetching, in the middle of a tar if need be."""
        with self._changed:
            self._stop.set()
            self._changed.notify()
        if self._order:
            self._thread.join(JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        done = -1
        while True:
            with self._changed:
                while self._position == done and not self._stop.is_set():
                    self._changed.wait()
                position = self._position
            if self._stop.is_set():
                return
            try:
                self._fetch(position)
            except FetchCancelledError:
                return
            done = position

    def _fetch(self, position: int) -> None:
        needed = self._needed(position)
        keep = {shard.path.name for shard in needed}
        missing = [shard for shard in needed if not mark_used(shard.path, shard.sidecar.tar_bytes)]
        for shard in missing:
            if self._stop.is_set():
                raise FetchCancelledError
            if self._position != position:
                return
            self._fetch_one(shard, keep)

    def _fetch_one(self, shard: Shard, keep: set[str]) -> None:
        assert shard.mirror is not None
        sidecar = shard.sidecar
        try:
            fetch_tar(shard.path, shard.mirror, tar_bytes=sidecar.tar_bytes, tar_sha256=sidecar.tar_sha256, keep=keep, stop=self._stop).close()
        except CapstreamError:
            return  # the reader of this shard meets the error and reports it

    def _needed(self, position: int) -> list[Shard]:
        """The shards in use, and those after them that fit into the cache with them."""
        needed: dict[Path, Shard] = {}
        size = 0
        for shard in self._order[position : position + 2 * self._window]:
            assert shard.mirror is not None
            if shard.path in needed or not shard.sidecar.samples:
                continue
            size += shard.sidecar.tar_bytes
            if size > shard.mirror.cache_bytes:
                break
            needed[shard.path] = shard
        return list(needed.values())
