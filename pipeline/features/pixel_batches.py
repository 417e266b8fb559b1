"""Shards -> uint8 batches of views, read, checked and decoded ahead of time in worker processes.

Workers write pixels into memory that they share with the consumer, so no pixels are pickled. The price is memory for a few batches, and
that a batch is valid only until the next one is requested. Workers do not import torch.
"""

import multiprocessing
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.execution.executors import START_METHOD, run_ahead
from pipeline.execution.prefetch import map_ahead as in_threads
from pipeline.features.views import crop_boxes
from pipeline.sharding.read_samples import decode_sample, read_samples
from shards.dataset import Shard
from shards.errors import DamageError
from shards.sidecar import Sample, key_number

# Images that a worker decodes at a time: enough to hide the cost of passing a task, few enough to keep memory small.
PIECE_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class PixelBatch:
    """Consecutive samples of one shard.

    Attributes:
        shard: Index into the list of shards.
        last: Whether the shard ends with this batch.
        samples: Keys and JSON records, in order.
        pieces: The pixels as consecutive arrays, uint8 (images, views, crop, crop, 3), in shared memory.
    """

    shard: int
    last: bool
    samples: list[tuple[str, dict[str, Any]]]
    pieces: list[NDArray[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """Memory for ``slots`` pieces, shared with the workers: uint8 (slots, images, views, crop, crop, 3)."""

    memory: Any
    shape: tuple[int, int, int, int, int, int]

    def array(self) -> NDArray[np.uint8]:
        """All slots as one array."""
        return np.frombuffer(self.memory, dtype=np.uint8).reshape(self.shape)


_buffer: NDArray[np.uint8] | None = None


def _without_samples(shard: Shard) -> Shard:
    """A shard that is cheap to pickle: each task gets the samples that it needs separately."""
    return replace(shard, sidecar=replace(shard.sidecar, samples=(), rejects=()))


def _begin(buffer: Buffer) -> None:
    global _buffer  # noqa: PLW0603 - a worker's own, set once when it starts
    _buffer = buffer.array()


def _decode(slot: int, shard: Shard, samples: Sequence[Sample], views: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    assert _buffer is not None
    return decode_into(_buffer[slot], shard, samples, views)


def decode_into(target: NDArray[np.uint8], shard: Shard, samples: Sequence[Sample], views: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """Decode samples of a shard, and write their views to ``target``, uint8 (at least images, views, crop, crop, 3).

    Returns:
        Keys and JSON records.

    Raises:
        DamageError: A sample is not what the sidecar says, does not decode, or is smaller than the crop.
    """
    crop = target.shape[2]
    records = []
    for row, (sample, jpeg, record) in enumerate(read_samples(shard, samples)):
        pixels = decode_sample(shard, sample.key, jpeg)
        if min(pixels.shape[:2]) < crop:
            problem = f"{pixels.shape[1]}x{pixels.shape[0]} pixels are too few for a crop of {crop}"
            raise DamageError(f"{shard.path}: sample {sample.key}: {problem}. {shard.repair}")
        where = crop_boxes(views, position=key_number(sample.key), height=pixels.shape[0], width=pixels.shape[1], crop=crop)
        for view, place in enumerate(where):
            cut = pixels[place.top : place.top + crop, place.left : place.left + crop]
            target[row, view] = cut[:, ::-1] if place.flipped else cut
        records.append((sample.key, record))
    return records


def pixel_batches(
    shards: Sequence[Shard], *, batch_size: int, crop: int, views: tuple[str, ...], workers: int, threads: bool = False
) -> Generator[PixelBatch, None, None]:
    """The batches of some shards, in order. No batch crosses a shard; an empty shard has no batches.

    Args:
        batch_size: Images per batch.
        crop: Side of a view in pixels.
        views: From :func:`pipeline.features.views.view_names`.
        workers: Number of processes that decode.
        threads: Use threads instead of processes: in a cluster's tasks, processes would take seconds to start.

    Raises:
        DamageError: A sample is damaged; names it.
        ResourceError: A worker was killed.
    """
    pieces = [
        (index, start, min(start + PIECE_IMAGES, first + batch_size, len(shard.sidecar.samples)))
        for index, shard in enumerate(shards)
        for first in range(0, len(shard.sidecar.samples), batch_size)
        for start in range(first, min(first + batch_size, len(shard.sidecar.samples)), PIECE_IMAGES)
    ]
    held = -(-batch_size // PIECE_IMAGES)  # slots held by the consumer while others are filled
    map_ahead = max(2 * workers, held)
    slots = map_ahead + held
    shape = (slots, min(batch_size, PIECE_IMAGES), len(views), crop, crop, 3)
    light = [_without_samples(shard) for shard in shards]
    tasks = ((number % slots, light[index], shards[index].sidecar.samples[start:stop], views) for number, (index, start, stop) in enumerate(pieces))
    if threads:
        pixels = np.empty(shape, np.uint8)
        results = in_threads(lambda task: decode_into(pixels[task[0]], *task[1:]), tasks, threads=workers, depth=map_ahead)
    else:
        buffer = Buffer(memory=multiprocessing.get_context(START_METHOD).RawArray("B", int(np.prod(shape))), shape=shape)
        pixels = buffer.array()
        results = run_ahead(_decode, tasks, workers=workers, ahead=map_ahead, initializer=_begin, initargs=(buffer,))
    samples: list[tuple[str, dict[str, Any]]] = []
    arrays: list[NDArray[np.uint8]] = []
    for number, ((index, start, stop), records) in enumerate(zip(pieces, results, strict=True)):
        samples.extend(records)
        arrays.append(pixels[number % slots, : stop - start])
        last = stop == len(shards[index].sidecar.samples)
        if last or stop % batch_size == 0:
            yield PixelBatch(shard=index, last=last, samples=samples, pieces=arrays)
            samples, arrays = [], []
