"""Where a unit's image comes from, and the pixels of shards, decoded straight into the batch.

Cached features are in :mod:`pipeline.loading.feature_source`.

Threads decode the pixels: libjpeg-turbo releases the global interpreter lock, and no pixels cross a process boundary.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.preprocessing import Preprocessing
from pipeline.execution.executors import default_workers
from pipeline.loading.order import WINDOW_SHARDS
from pipeline.sharding.read_samples import decode_sample
from shards.caption_table import CaptionTable
from shards.dataset import Shard, Split
from shards.errors import DamageError
from shards.fetch_ahead import FetchAhead
from shards.tar import read_member

Augmentation = Literal["tutorial", "none"]
# Tars that one thread keeps open, as many as one shuffle window. A file removed from the cache uses disk space until it is closed.
OPEN_FILES = WINDOW_SHARDS


class Source(Protocol):
    """A split's images and captions.

    Attributes:
        table: The captions.
        feature_dim: Features per image; None for pixels.
        threads: Number of threads that build batches; 0: the consumer's thread.
    """

    table: CaptionTable
    feature_dim: int | None
    threads: int

    def images(self, rows: NDArray[np.int64], draws: NDArray[np.float64]) -> Tensor:
        """The images at ``rows``, int64 (units,); ``draws``, float64 (units, 3), decide the crop, or the cached view.

        Returns:
            float16 (units, positions, dim) features, or uint8 (units, crop, crop, 3) pixels.
        """
        ...

    def mask(self, rows: NDArray[np.int64]) -> Tensor | None:
        """Which positions of the images at ``rows`` are real and not padding, bool (units, positions); None: all of them."""
        ...

    def mirrored(self, draws: NDArray[np.float64]) -> Tensor | None:
        """Which images are to be mirrored on the device, bool (units,); None: no image."""
        ...

    def visit(self, rows: NDArray[np.int64]) -> AbstractContextManager[Callable[[int], None]]:
        """Prepare an epoch whose units are the images at ``rows``, in that order.

        Returns:
            A context manager. Its value is a function to call with the index of each unit that is reached.
        """
        ...


class ShardSource:
    """Pixels from shards: read at the sidecars' offsets, checked, decoded, cropped.

    Args:
        split: The shards.
        table: Their captions.
        preprocessing: Size and crop.
        augmentation: ``tutorial``: random crop and horizontal flip; ``none``: the centre crop of caching and captioning.
        threads: Threads that decode; by default one for each core.
        pinned: Put batches into pinned memory, from which a GPU copies asynchronously.
    """

    feature_dim: int | None = None

    def __init__(
        self,
        split: Split,
        table: CaptionTable,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        threads: int | None = None,
        pinned: bool = False,
    ) -> None:
        self.table, self.preprocessing, self.augmentation = table, preprocessing, augmentation
        self.threads = default_workers() if threads is None else threads
        self.pinned = pinned
        self.split = split
        self._own = _ThreadLocal()

    def images(self, rows: NDArray[np.int64], draws: NDArray[np.float64]) -> Tensor:
        crop = self.preprocessing.crop
        target = torch.empty((len(rows), crop, crop, 3), dtype=torch.uint8, pin_memory=self.pinned)
        places = target.numpy()
        decoded, pixels = -1, np.empty((0, 0, 3), np.uint8)
        # Sorted by row: an image that several units share is decoded once, and the tar is read sequentially.
        for unit in np.argsort(rows, kind="stable").tolist():
            row = int(rows[unit])
            if row != decoded:
                decoded, pixels = row, self._pixels(row)
            down, right = pixels.shape[0] - crop, pixels.shape[1] - crop
            if self.augmentation == "none":
                top, left = down // 2, right // 2
            else:
                top, left = int(draws[unit, 0] * (down + 1)), int(draws[unit, 1] * (right + 1))
            places[unit] = pixels[top : top + crop, left : left + crop]
        return target

    def mask(self, rows: NDArray[np.int64]) -> Tensor | None:  # noqa: ARG002 - a network gives every image the same positions
        return None

    def mirrored(self, draws: NDArray[np.float64]) -> Tensor | None:
        return None if self.augmentation == "none" else torch.from_numpy(draws[:, 2] < 0.5)

    @contextmanager
    def visit(self, rows: NDArray[np.int64]) -> Iterator[Callable[[int], None]]:
        """Fetch remote shards ahead of their use, in the order in which they are visited first."""
        shards, first = np.unique(self.table.shard_rows[rows], return_index=True)
        _, last = np.unique(self.table.shard_rows[rows][::-1], return_index=True)
        order = np.argsort(first)
        # (shards,): the last unit that needs this shard or an earlier one
        done = np.maximum.accumulate(len(rows) - 1 - last[order])
        with FetchAhead([self.split.shards[shard] for shard in shards[order]], window=WINDOW_SHARDS) as fetched:
            yield lambda unit: fetched.move_to(int(np.searchsorted(done, unit)))

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        """uint8 (height, width, 3); valid until this thread decodes the next image."""
        shard, sample = self.split.sample(row)
        jpeg = read_member(self._own.file(shard), shard, sample.key, "jpg", sample.jpg)
        pixels = decode_sample(shard, sample.key, jpeg, self._own.scratch)
        if min(pixels.shape[:2]) < self.preprocessing.crop:
            raise DamageError(
                f"{shard.path}: sample {sample.key}: {pixels.shape[1]}x{pixels.shape[0]} pixels are too few for a crop of "
                f"{self.preprocessing.crop}. {shard.repair}"
            )
        return pixels


class _ThreadLocal(threading.local):
    """What each decoding thread keeps: open tars, and memory to decode into."""

    def __init__(self) -> None:
        self.files: OrderedDict[str, IO[bytes]] = OrderedDict()
        # A new array for every image would cost page faults: a third of the decoding time was measured.
        self.scratch = np.empty(640 * 640 * 3, dtype=np.uint8)

    def file(self, shard: Shard) -> IO[bytes]:
        name = str(shard.path)
        found = self.files.pop(name, None)
        if found is None:
            if len(self.files) >= OPEN_FILES:
                self.files.popitem(last=False)[1].close()
            try:
                found = shard.open()
            except FileNotFoundError:
                raise DamageError(f"{shard.path}: no such file. {shard.repair}") from None
        self.files[name] = found
        return found
