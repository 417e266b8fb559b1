"""The missing parts of a feature file, made on one device or on several: a process for each device, a part for each shard."""

import contextlib
import multiprocessing
import queue
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.encoder import FrozenBackbone
from pipeline.allocator import keep_freed_memory
from pipeline.executors import START_METHOD, default_workers, end_with_parent
from pipeline.frozen_pass import features_of_batches
from pipeline.pixels import pixel_batches
from shards.caption_table import table_from_records
from shards.errors import CapstreamError, ResourceError
from shards.features import Provenance, open_features, write_features
from shards.manifest import Shard


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a split's pass runs: the network as it is computed, and where; with several devices it waits on the CPU."""

    frozen: FrozenBackbone
    provenance: Provenance
    dim: int
    batch_images: int
    devices: tuple[torch.device, ...]
    workers: int


def part_is_whole(part: Path, shard: Shard, provenance: Provenance) -> bool:
    """Whether a part is there, undamaged, and made from this shard in this way."""
    if not part.is_file():
        return False
    try:
        there = open_features(part)
    except CapstreamError:
        return False
    return asdict(there.provenance) == asdict(provenance) and there.table.keys == tuple(s.key for s in shard.sidecar.samples)


Task = tuple[Shard, Path]


def cache_parts(tasks: Sequence[Task], plan: Plan, advance: Callable[[int], None]) -> None:
    """Make the missing parts: here, or in a process for each of several devices."""
    if len(plan.devices) == 1:
        _cache_parts_on(plan.devices[0], tasks, plan, advance)
        return
    context = multiprocessing.get_context(START_METHOD)
    messages: Any = context.Queue()
    processes = [
        context.Process(  # type: ignore[attr-defined]
            target=_device_process, args=(messages, device, tasks[index :: len(plan.devices)], plan)
        )
        for index, device in enumerate(plan.devices)
    ]
    try:
        for process in processes:
            process.start()
        running = len(processes)
        while running:
            try:
                message = messages.get(timeout=1)
            except queue.Empty:
                dead = [process for process in processes if process.exitcode not in (None, 0)]
                if dead:
                    raise ResourceError(
                        f"The process of a device ended with code {dead[0].exitcode}, perhaps for memory. Run the command again with a "
                        "smaller --batch-size or fewer devices: finished parts are kept."
                    ) from None
                continue
            if isinstance(message, CapstreamError):
                raise message
            if message is None:
                running -= 1
            else:
                advance(message)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()


def _device_process(messages: Any, device: torch.device, tasks: Sequence[Task], plan: Plan) -> None:
    """One device's share of the parts; tells its parent how many images are done, what went wrong, or that it is at its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
    end_with_parent()
    keep_freed_memory()
    if device.type == "cpu":  # processes that spin on the same cores are slower than one
        torch.set_num_threads(max(1, default_workers() // len(plan.devices)))
    try:
        _cache_parts_on(device, tasks, plan, messages.put)
        messages.put(None)
    except CapstreamError as error:
        messages.put(error)


def _cache_parts_on(device: torch.device, tasks: Sequence[Task], plan: Plan, advance: Callable[[int], None]) -> None:
    """Run the network over some shards and write their parts, each in the background while the next shard is computed."""
    frozen = plan.frozen.to(device)
    shards = [shard for shard, _ in tasks]
    nothing = np.zeros((0, len(plan.provenance.views), plan.dim), dtype="<f2")
    for shard, part in tasks:
        if not shard.sidecar.samples:
            _write_part(part, [nothing], [], plan)
    batches = pixel_batches(shards, batch_size=plan.batch_images, crop=frozen.preprocessing.crop, views=plan.provenance.views, workers=plan.workers)
    rows: list[NDArray[np.float16]] = []
    records: list[tuple[str, dict[str, Any]]] = []
    written: Future[None] | None = None
    with contextlib.closing(batches), ThreadPoolExecutor(1) as writer:
        for batch, features in features_of_batches(frozen, batches, device=device, names=[str(shard.path) for shard in shards]):
            rows.append(features)
            records.extend(batch.samples)
            advance(len(batch.samples))
            if batch.last:
                if written is not None:
                    written.result()
                written = writer.submit(_write_part, tasks[batch.shard][1], rows, records, plan)
                rows, records = [], []
        if written is not None:
            written.result()


def _write_part(path: Path, rows: list[NDArray[np.float16]], records: list[tuple[str, dict[str, Any]]], plan: Plan) -> None:
    piece = (np.concatenate(rows), table_from_records([records]))
    write_features(path, lambda: [piece], dim=plan.dim, provenance=plan.provenance)
