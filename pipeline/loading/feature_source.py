"""Cached features as training reads them: from memory, or from a file that does not fit into it.

From a file, threads read the rows of the next batches while the current one is trained on: one read for each row, in the order of need,
which :mod:`pipeline.loading.order` knows before anything is read. The batches are the same from memory and from the file.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.errors import DamageError
from shards.features import FeatureFile

# Features are kept on the GPU only if they leave this share of its free memory.
FREE_SHARE = 0.5
# Batches that are read at a time, and so the number of reads that the disk sees at once
READ_THREADS = 8
CHUNK_BYTES = 64 << 20


class FeatureSource:
    """Features of a split for training or evaluation.

    Args:
        file: The feature file.
        sample_views: Sample one view for each unit, as training does; otherwise use their mean, as evaluation does.
        pooled: Give the mean over an image's positions, for a decoder that sees one vector.
        memory_bytes: Features that need more memory are read from their file while they are needed; None: always load them.
        device: The training device. Features in memory are on the GPU if they leave half of its free memory.
    """

    def __init__(
        self,
        file: FeatureFile,
        *,
        sample_views: bool = False,
        pooled: bool = False,
        memory_bytes: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.table = file.table
        self.feature_dim: int | None = file.dim
        images, views, positions, dim = file.features.shape
        self.views = views if sample_views else 1
        counts = file.positions if not pooled and (file.positions != positions).any() else None
        self._counts = None if counts is None else torch.from_numpy(counts.astype(np.int64))
        self._positions = torch.arange(positions)
        needed = 2 * images * self.views * (1 if pooled else positions) * dim
        self._rows: _Rows
        if memory_bytes is None or needed <= memory_bytes:
            self.threads = 0
            self._rows = _RowsInMemory(file, mean_of_views=not sample_views, pooled=pooled, device=device)
        else:
            self.threads = READ_THREADS
            self._rows = _RowsInFile(file, mean_of_views=not sample_views, pooled=pooled)

    def images(self, rows: NDArray[np.int64], draws: NDArray[np.float64]) -> Tensor:
        views = (draws[:, 0] * self.views).astype(np.int64)
        return self._rows.take(rows * self.views + views)

    def mask(self, rows: NDArray[np.int64]) -> Tensor | None:
        return None if self._counts is None else self._positions < self._counts[torch.from_numpy(rows)][:, None]

    def mirrored(self, draws: NDArray[np.float64]) -> Tensor | None:  # noqa: ARG002 - a view is mirrored already, or not
        return None

    @contextmanager
    def visit(self, rows: NDArray[np.int64]) -> Iterator[Callable[[int], None]]:  # noqa: ARG002 - each batch is read for itself
        yield lambda _: None


class _Rows(Protocol):
    """Rows of features: an image's views one after the other, or their mean."""

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """float16 (rows, positions, dim)."""
        ...


class _RowsInMemory:
    def __init__(self, file: FeatureFile, *, mean_of_views: bool, pooled: bool, device: torch.device | None) -> None:
        images, views, positions, dim = file.features.shape
        views, positions = 1 if mean_of_views else views, 1 if pooled else positions
        loaded = np.empty((images, views, positions, dim), np.float16)
        step = max(1, CHUNK_BYTES // max(file.features[:1].nbytes, 1))
        for start in range(0, images, step):
            stop = start + step
            chunk = file.mean_view(start, stop)[:, None] if mean_of_views else file.features[start:stop]
            loaded[start:stop] = pooled_positions(chunk, file.positions[start:stop]) if pooled else chunk
        # (images, views, positions, dim) -> (images * views, positions, dim)
        self._features = torch.from_numpy(loaded).flatten(0, 1)
        if device is not None and device.type == "cuda" and self._features.nbytes <= FREE_SHARE * torch.cuda.mem_get_info(device)[0]:
            self._features = self._features.to(device)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        return self._features[torch.from_numpy(rows).to(self._features.device)]


class _RowsInFile:
    """Reads each row with one system call. A mapped file would read it in several page faults, each of which waits for the disk."""

    def __init__(self, file: FeatureFile, *, mean_of_views: bool, pooled: bool) -> None:
        self._file, self._mean_of_views, self._pooled = file, mean_of_views, pooled
        _, views, positions, dim = file.features.shape
        self._shape = (views if mean_of_views else 1, positions, dim)
        self._views = 1 if mean_of_views else views
        self._offset = file.features.offset if isinstance(file.features, np.memmap) else 0
        self._open = file.path.open("rb", buffering=0)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._open.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # read no more than a row

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        read = np.empty((len(rows), *self._shape), np.float16)
        order = np.argsort(rows, kind="stable")
        for place in order.tolist():
            self._read_row(int(rows[place]), read[place])
        chosen = read if read.shape[1] == 1 else read.mean(axis=1, dtype=np.float32, keepdims=True).astype(np.float16)
        if self._pooled:
            chosen = pooled_positions(chosen, self._file.positions[rows // self._views])
        return torch.from_numpy(chosen[:, 0])

    def _read_row(self, row: int, target: NDArray[np.float16]) -> None:
        start, view = self._offset + row * target.nbytes, memoryview(target).cast("B")  # type: ignore[arg-type]
        if not hasattr(os, "preadv"):  # Windows
            target[:] = self._file.features.reshape(-1, *target.shape)[row]
            return
        done = 0
        while done < len(view):
            read = os.preadv(self._open.fileno(), [view[done:]], start + done)
            if read == 0:
                raise DamageError(f"{self._file.path}: became shorter while it was read. Restore it, or make it again, then resume.")
            done += read


def pooled_positions(features: NDArray[np.float16], counts: NDArray[np.int32]) -> NDArray[np.float16]:
    """The mean over each image's real positions.

    Args:
        features: float16 (images, views, positions, dim).
        counts: (images,): the number of real positions.

    Returns:
        float16 (images, views, 1, dim).
    """
    if features.shape[2] == 1:
        return features
    real = (np.arange(features.shape[2]) < counts[:, None])[:, None, :, None]
    sums = features.sum(axis=2, keepdims=True, dtype=np.float32, where=real)
    mean: NDArray[np.float16] = (sums / counts[:, None, None, None]).astype(np.float16)
    return mean
