"""Shards -> uint8 batches of views, read, checked and decoded ahead in worker processes.

Workers write pixels straight into memory that they share with the consumer: no pixel is pickled. What it trades: a few batches of
memory, and a batch is only valid until the next one is asked for. Workers import no torch.
"""

import multiprocessing
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.execution.executors import START_METHOD, run_ahead
from pipeline.execution.prefetch import ahead as in_threads
from pipeline.features.views import places
from pipeline.sharding.read_samples import decode_sample, read_samples
from shards.errors import DamageError
from shards.manifest import Sample, Shard

# Images that a worker decodes at a time: large enough that handing it over costs nothing, small enough that memory stays small.
PIECE_IMAGES = 32


@dataclass(frozen=True, kw_only=True)
class PixelBatch:
    """Consecutive samples of one shard.

    Attributes:
        shard: Index of the shard among those that were asked for.
        last: Whether the shard ends with this batch.
        samples: Keys and JSON records, in order.
        pieces: The pixels, one piece after the other, uint8 (images, views, crop, crop, 3), in shared memory.
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
        """The whole of it."""
        return np.frombuffer(self.memory, dtype=np.uint8).reshape(self.shape)


_buffer: NDArray[np.uint8] | None = None


def _without_samples(shard: Shard) -> Shard:
    """A small shard to send with each task: the samples that the task needs go beside it."""
    return replace(shard, sidecar=replace(shard.sidecar, samples=(), rejects=()))


def _begin(buffer: Buffer) -> None:
    global _buffer  # noqa: PLW0603 - a worker's own, set once when it starts
    _buffer = buffer.array()


def _decode(slot: int, shard: Shard, samples: Sequence[Sample], views: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    assert _buffer is not None
    return decode_into(_buffer[slot], shard, samples, views)


def decode_into(target: NDArray[np.uint8], shard: Shard, samples: Sequence[Sample], views: tuple[str, ...]) -> list[tuple[str, dict[str, Any]]]:
    """Decode samples of a shard and cut their views into ``target``, uint8 (at least images, views, crop, crop, 3).

    Returns:
        Keys and JSON records.

    Raises:
        DamageError: A sample is not what the sidecar says, does not decode, or is smaller than the crop.
    """
    crop = target.shape[2]
    records = []
    for row, (sample, jpeg, record) in enumerate(read_samples(shard, samples)):
        pixels = decode_sample(shard, sample.key, jpeg)
        if min(pixels.shape[:2]) < crop or not sample.key.isdecimal():
            problem = f"{pixels.shape[1]}x{pixels.shape[0]} pixels are too few for a crop of {crop}, or its key is no number"
            raise DamageError(f"{shard.path}: sample {sample.key}: {problem}. {shard.repair}")
        where = places(views, position=int(sample.key), height=pixels.shape[0], width=pixels.shape[1], crop=crop)
        for view, place in enumerate(where):
            cut = pixels[place.top : place.top + crop, place.left : place.left + crop]
            target[row, view] = cut[:, ::-1] if place.flipped else cut
        records.append((sample.key, record))
    return records


def pixel_batches(
    shards: Sequence[Shard], *, batch_size: int, crop: int, views: tuple[str, ...], workers: int, threads: bool = False
) -> Generator[PixelBatch, None, None]:
    """The batches of some shards, in order; none crosses a shard, and an empty shard gives none.

    Args:
        batch_size: Images per batch.
        crop: Side of a view in pixels.
        views: From :func:`pipeline.features.views.view_names`.
        workers: Processes that decode ahead.
        threads: Take threads instead: where this process is a cluster's, others would take seconds to start.

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
    held = -(-batch_size // PIECE_IMAGES)  # by the consumer, while the others are filled
    ahead = max(2 * workers, held)
    slots = ahead + held
    shape = (slots, min(batch_size, PIECE_IMAGES), len(views), crop, crop, 3)
    light = [_without_samples(shard) for shard in shards]
    tasks = ((number % slots, light[index], shards[index].sidecar.samples[start:stop], views) for number, (index, start, stop) in enumerate(pieces))
    if threads:
        pixels = np.empty(shape, np.uint8)
        results = in_threads(lambda task: decode_into(pixels[task[0]], *task[1:]), tasks, threads=workers, depth=ahead)
    else:
        buffer = Buffer(memory=multiprocessing.get_context(START_METHOD).RawArray("B", int(np.prod(shape))), shape=shape)
        pixels = buffer.array()
        results = run_ahead(_decode, tasks, workers=workers, ahead=ahead, initializer=_begin, initargs=(buffer,))
    samples: list[tuple[str, dict[str, Any]]] = []
    arrays: list[NDArray[np.uint8]] = []
    for number, ((index, start, stop), records) in enumerate(zip(pieces, results, strict=True)):
        samples.extend(records)
        arrays.append(pixels[number % slots, : stop - start])
        last = stop == len(shards[index].sidecar.samples)
        if last or stop % batch_size == 0:
            yield PixelBatch(shard=index, last=last, samples=samples, pieces=arrays)
            samples, arrays = [], []
