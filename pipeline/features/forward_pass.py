"""Pixel batches -> features, with the device kept busy: the loop that passes a whole dataset through the frozen network.

On a CPU the network takes the cores, and decoding costs a few per cent of its time. On a GPU the loop runs ahead of the device: pixels are
copied from pinned memory on a separate stream while the previous batch is computed, and results are fetched two batches later.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.encoder import FrozenBackbone
from pipeline.backbone.extraction import extract_features
from pipeline.features.pixel_batches import PixelBatch
from shards.errors import DamageError

IN_FLIGHT = 2


def features_of_batches(
    frozen: FrozenBackbone, batches: Iterable[PixelBatch], *, device: torch.device, names: Sequence[str]
) -> Iterator[tuple[PixelBatch, NDArray[np.float16]]]:
    """Each batch with its features, float16 (images, views, positions, dim), in order.

    Args:
        frozen: On ``device``.
        names: The name of each shard in messages.

    Raises:
        DamageError: A feature is not finite in float16; names the sample.
    """
    compute = _on_gpu(frozen, batches, device) if device.type == "cuda" else _on_cpu(frozen, batches, device)
    for batch, features in compute:
        rows: NDArray[np.float16] = features.numpy()
        check_finite(rows, [f"{names[batch.shard]}: sample {key}" for key, _ in batch.samples])
        yield batch, rows


def _on_cpu(frozen: FrozenBackbone, batches: Iterable[PixelBatch], device: torch.device) -> Iterator[tuple[PixelBatch, Tensor]]:
    for batch in batches:
        pieces = [torch.from_numpy(piece) for piece in batch.pieces]
        images = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).to(device)
        yield batch, extract_features(frozen, images).cpu()


def _on_gpu(frozen: FrozenBackbone, batches: Iterable[PixelBatch], device: torch.device) -> Iterator[tuple[PixelBatch, Tensor]]:
    copies, compute = torch.cuda.Stream(device), torch.cuda.current_stream(device)  # type: ignore[no-untyped-call]
    pending: deque[tuple[PixelBatch, Tensor, torch.cuda.Event]] = deque()
    for batch in batches:
        # Copied to pinned memory of this process, so that the shared memory is free for the next batch.
        pinned = torch.empty((len(batch.samples), *batch.pieces[0].shape[1:]), dtype=torch.uint8, pin_memory=True)
        torch.cat([torch.from_numpy(piece) for piece in batch.pieces], out=pinned)
        with torch.cuda.stream(copies):
            images = pinned.to(device, non_blocking=True)
        compute.wait_stream(copies)
        images.record_stream(compute)
        features = extract_features(frozen, images)
        fetched = torch.empty(features.shape, dtype=torch.float16, pin_memory=True)
        fetched.copy_(features, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(compute)
        pending.append((batch, fetched, done))
        if len(pending) > IN_FLIGHT:
            yield _fetched(*pending.popleft())
    while pending:
        yield _fetched(*pending.popleft())


def _fetched(batch: PixelBatch, features: Tensor, done: torch.cuda.Event) -> tuple[PixelBatch, Tensor]:
    done.synchronize()
    return batch, features


def check_finite(features: NDArray[np.float16], names: Sequence[str]) -> None:
    """Check that features, float16 (images, ..., dim), contain no NaN or inf.

    Raises:
        DamageError: They do; names the first image.
    """
    finite = np.isfinite(features).reshape(len(features), -1).all(axis=1)
    if not finite.all():
        name = names[int(np.flatnonzero(~finite)[0])]
        raise DamageError(
            f"{name}: the network's features contain NaN or inf in float16, the type in which they are stored. The weights do not suit this "
            "network or its input. Choose other `weights`, or `precision` fp32 if another one was chosen."
        )
