"""The parts of a feature file, one per shard: made on one or several devices, and joined.

Processes get the network as a :class:`~pipeline.backbone.portable.PortableNetwork`: the tensors of the float32 network, and those of the
lower precision as the first device corrected them. So all parts are made with the same tensors, and no process needs a file of weights.
"""

import contextlib
import multiprocessing
import queue
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.encoder import FrozenBackbone
from pipeline.backbone.portable import PortableNetwork
from pipeline.execution.array_tasks import WORKER_SECONDS
from pipeline.execution.devices import out_of_memory, prepare_device
from pipeline.execution.executors import START_METHOD, default_workers, exit_with_parent, signals_deferred
from pipeline.features.forward_pass import features_of_batches
from pipeline.features.pixel_batches import pixel_batches
from shards.atomic import hold_lock
from shards.caption_table import table_from_records
from shards.dataset import Shard, Split
from shards.digests import json_digest
from shards.errors import CapstreamError, DamageError, MismatchError, ResourceError
from shards.feature_writer import FeatureChunk, write_features
from shards.features import Provenance, open_features
from shards.fetch_ahead import FetchAhead
from shards.output import Output

# A shard, and the name of its part.
PartTask = tuple[Shard, str]
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class PartSpec:
    """What all parts of a split have in common, except the network.

    Attributes:
        parts: The folder of the parts.
        shape: (positions, dim) of each view.
        batch_images: Images per forward pass.
        workers: Processes that decode images for each device, or threads with ``threads``.
    """

    parts: Output
    provenance: Provenance
    shape: tuple[int, int]
    batch_images: int
    workers: int
    threads: bool = False


def part_name(index: int) -> str:
    """The name of a shard's part: the shard's number."""
    return f"{index:06d}.h5"


def _keys(shard: Shard) -> tuple[str, ...]:
    return tuple(sample.key for sample in shard.sidecar.samples)


def _mark(shard: Shard, provenance: Provenance) -> str:
    """A digest of what a part in S3 was made from, and how."""
    return json_digest([asdict(provenance), _keys(shard)])


def whole_parts(parts: Output, tasks: Sequence[PartTask], provenance: Provenance) -> Iterator[bool]:
    """Whether each part exists, is undamaged, and was made from its shard in this way. In S3, the object's mark says so."""
    return parts.map(lambda task: _is_whole(parts, *task, provenance), tasks)


def _is_whole(parts: Output, shard: Shard, name: str, provenance: Provenance) -> bool:
    if parts.url is not None:
        found = parts.stat(name)
        return found is not None and found[1] == _mark(shard, provenance)
    if not (parts.folder / name).is_file():
        return False
    try:
        there = open_features(parts.folder / name)
    except CapstreamError:
        return False
    return asdict(there.provenance) == asdict(provenance) and there.table.keys == _keys(shard)


def finished_parts(parts: Output, split: Split) -> tuple[Provenance, tuple[int, int]] | None:
    """How the parts of a split were made, and (positions, dim) of each view, if all exist, undamaged and made in one way; else None."""
    tasks = [(shard, part_name(index)) for index, shard in enumerate(split.shards)]
    names = [name for _, name in tasks]
    if not set(names) <= set(parts.names()):
        return None
    parts.fetch(names[:1])
    try:
        first = open_features(parts.folder / names[0])
    except CapstreamError:
        return None
    if not all(whole_parts(parts, tasks, first.provenance)):
        return None
    return first.provenance, (first.features.shape[2], first.dim)


def join_parts(target: Path, split: Split, parts: Output, *, shape: tuple[int, int], provenance: Provenance) -> int:
    """Commit a split's feature file from its parts; returns the number of images.

    Raises:
        DamageError: A part is damaged, or a shard is missing or appears twice.
        MismatchError: A part was made in another way.
    """
    paths = [parts.folder / part_name(index) for index in range(len(split.shards))]
    parts.fetch(path.name for path in paths)

    def chunks() -> Iterator[FeatureChunk]:
        found = []
        for path in paths:
            if not path.is_file():
                continue
            part = open_features(path)
            if asdict(part.provenance) != asdict(provenance):
                raise MismatchError(f"{path}: was made in another way than the other parts. Run the same command again to replace it.")
            found.append((path.name, part.table.keys))
            yield part.features, part.table
        check_every_shard_once(split, found, str(parts.folder))

    return write_features(target, chunks, shape=shape, provenance=provenance)[0]


def check_every_shard_once(split: Split, parts: Iterable[tuple[str, Sequence[str]]], place: str) -> None:
    """Check that parts are all shards of a split, each once and in order.

    Args:
        parts: Name and keys of each part.
        place: The folder of the parts, for messages.

    Raises:
        DamageError: They are not; names shards that are missing or appear twice, and parts of other shards.
    """
    there = [(name, tuple(keys)) for name, keys in parts]
    wanted = [_keys(shard) for shard in split.shards]
    if [keys for _, keys in there] == wanted:
        return
    # Shards without samples have no keys: the part's name identifies them
    by_keys = {keys or part_name(index): index for index, keys in enumerate(wanted)}
    found = [(name, by_keys.get(keys or name)) for name, keys in there]
    times = Counter(index for _, index in found)
    shards = [shard.path.name for shard in split.shards]
    problems = {
        "missing": [shard for index, shard in enumerate(shards) if not times[index]],
        "duplicate": [shard for index, shard in enumerate(shards) if times[index] > 1],
        "of no shard of this split": [name for name, index in found if index is None],
    }
    said = [
        f"{what}: {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for what, names in problems.items()
        if names
    ]
    raise DamageError(
        f"{place}: the parts are not split {split.name!r} ({'; '.join(said) or 'out of order'}). Run the same command again. "
        "On a cluster, `out` has to be a folder that all machines share under the same path, or a place in S3."
    )


def cache_parts(tasks: Sequence[PartTask], frozen: FrozenBackbone, device: torch.device, spec: PartSpec, advance: Callable[[int], None]) -> None:
    """Pass some shards through the network and write their parts, each in the background while the next shard is computed.

    Args:
        tasks: Shards, and the names of their parts.
        frozen: The network, on ``device``.
        advance: Receives the number of images of each finished batch.

    Raises:
        DamageError, ResourceError: As the functions called here.
    """
    shards = [shard for shard, _ in tasks]
    nothing = np.zeros((0, len(spec.provenance.views), *spec.shape), dtype="<f2")
    for task in tasks:
        if not task[0].sidecar.samples:
            _write_part(task, [nothing], [], spec)
    batches = pixel_batches(
        shards,
        batch_size=spec.batch_images,
        crop=frozen.preprocessing.crop,
        views=spec.provenance.views,
        workers=spec.workers,
        threads=spec.threads,
    )
    rows: list[NDArray[np.float16]] = []
    records: list[tuple[str, dict[str, Any]]] = []
    written: Future[None] | None = None
    with out_of_memory(), FetchAhead(shards, window=2) as fetched, contextlib.closing(batches), ThreadPoolExecutor(1) as writer:
        for batch, features in features_of_batches(frozen, batches, device=device, names=[str(shard.path) for shard in shards]):
            fetched.move_to(batch.shard)
            rows.append(features)
            records.extend(batch.samples)
            advance(len(batch.samples))
            if batch.last:
                if written is not None:
                    written.result()
                written = writer.submit(_write_part, tasks[batch.shard], rows, records, spec)
                rows, records = [], []
        if written is not None:
            written.result()


def _write_part(task: PartTask, rows: list[NDArray[np.float16]], records: list[tuple[str, dict[str, Any]]], spec: PartSpec) -> None:
    shard, name = task
    piece = (np.concatenate(rows), table_from_records([records], language=spec.provenance.language))
    with hold_lock(spec.parts.folder, name, "writing this part", wait_seconds=WORKER_SECONDS):
        write_features(spec.parts.folder / name, lambda: [piece], shape=spec.shape, provenance=spec.provenance)
        if spec.parts.url is not None:
            spec.parts.upload(name, mark=_mark(shard, spec.provenance))
            (spec.parts.folder / name).unlink()


def cache_parts_on_devices(
    tasks: Sequence[PartTask], network: PortableNetwork, devices: Sequence[torch.device], spec: PartSpec, advance: Callable[[int], None]
) -> None:
    """Like :func:`cache_parts`, on several devices: one process per device takes every n-th shard. If one fails, all end."""
    context: Any = multiprocessing.get_context(START_METHOD)
    with signals_deferred():
        messages = context.Queue()
    shares = [(device, list(tasks[index :: len(devices)])) for index, device in enumerate(devices)]
    processes = []
    try:
        for device, share in shares:
            if share:
                process = context.Process(target=_device_process, args=(messages, device, len(devices), share, network, spec))
                with signals_deferred():
                    process.start()
                    processes.append(process)
        running = len(processes)
        while running:
            try:
                message = messages.get(timeout=0.5)
            except queue.Empty:
                message = 0
            dead = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
            if isinstance(message, CapstreamError):
                raise message
            if dead:
                raise ResourceError(
                    f"The process of a device ended with code {dead[0]}, perhaps out of memory. Run the command again with a smaller "
                    "`batch_size` or fewer devices: finished parts are kept."
                )
            if message is None:
                running -= 1
            else:
                advance(message)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()


def _device_process(messages: Any, device: torch.device, devices: int, tasks: Sequence[PartTask], network: PortableNetwork, spec: PartSpec) -> None:
    """Make the parts of one device. Sends its parent the number of images done, an error, or None at the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent handles Ctrl-C
    exit_with_parent()
    if device.type == "cpu":  # too many threads per core would be slower than one
        torch.set_num_threads(max(1, default_workers() // devices))
    prepare_device(device)
    try:
        cache_parts(tasks, network.build().to(device), device, spec, messages.put)
        messages.put(None)
    except CapstreamError as error:
        messages.put(error)
    except (OSError, RuntimeError) as error:  # as a single process would report them
        messages.put(ResourceError(f"{device}: {type(error).__name__}: {error}"))
