"""The parts of a feature file, one for each shard: made on one device or on several, and joined.

Another process gets a recipe and not the network: the tensors of the float32 network, and those that photographs have corrected on the
first device. So all parts are made by the same ones, and no other process needs a file of weights.
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
from pipeline.execution.executors import START_METHOD, default_workers, end_with_parent
from pipeline.features.forward_pass import features_of_batches
from pipeline.features.pixel_batches import pixel_batches
from shards.atomic import digest, exclusive
from shards.caption_table import table_from_records
from shards.errors import CapstreamError, DamageError, MismatchError, ResourceError
from shards.features import Piece, Provenance, open_features, write_features
from shards.manifest import Shard, Split
from shards.output import Output
from shards.remote import FetchAhead

Task = tuple[Shard, str]
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a split's pass runs, apart from the network.

    Attributes:
        parts: Where the parts go.
        workers: Processes that decode beside each device, or ``threads``.
    """

    parts: Output
    provenance: Provenance
    dim: int
    batch_images: int
    workers: int
    threads: bool = False


def part_name(index: int) -> str:
    """The name of a shard's part: that of the shard's number."""
    return f"{index:06d}.h5"


def _keys(shard: Shard) -> tuple[str, ...]:
    return tuple(sample.key for sample in shard.sidecar.samples)


def _mark(shard: Shard, provenance: Provenance) -> str:
    """What a part in S3 was made from, and how."""
    return digest([asdict(provenance), _keys(shard)])


def whole_parts(parts: Output, tasks: Sequence[Task], provenance: Provenance) -> Iterator[bool]:
    """Whether each part is there, undamaged, and made from its shard in this way. In S3 its mark says so."""
    return parts.each(lambda task: _is_whole(parts, *task, provenance), tasks)


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


def finished_parts(parts: Output, split: Split) -> tuple[Provenance, int] | None:
    """How the parts of a split were made, and their features per view, if all are there, whole, and made in one way; else None."""
    tasks = [(shard, part_name(index)) for index, shard in enumerate(split.shards)]
    names = [name for _, name in tasks]
    if not set(names) <= set(parts.names()):
        return None
    parts.bring(names[:1])
    try:
        first = open_features(parts.folder / names[0])
    except CapstreamError:
        return None
    if not all(whole_parts(parts, tasks, first.provenance)):
        return None
    return first.provenance, first.dim


def join_parts(target: Path, split: Split, parts: Output, *, dim: int, provenance: Provenance) -> int:
    """Commit a split's feature file from its parts; returns the number of images.

    Raises:
        DamageError: A part is damaged, or not every shard is there just once.
        MismatchError: A part was made in another way.
    """
    paths = [parts.folder / part_name(index) for index in range(len(split.shards))]
    parts.bring(path.name for path in paths)

    def pieces() -> Iterator[Piece]:
        found = []
        for path in paths:
            if not path.is_file():
                continue
            part = open_features(path)
            if asdict(part.provenance) != asdict(provenance):
                raise MismatchError(f"{path}: was made in another way than the parts beside it. Run the same command again: it is made anew.")
            found.append((path.name, part.table.keys))
            yield part.features, part.table
        check_every_shard_once(split, found, str(parts.folder))

    return write_features(target, pieces, dim=dim, provenance=provenance)[0]


def check_every_shard_once(split: Split, parts: Iterable[tuple[str, Sequence[str]]], place: str) -> None:
    """Refuse parts that are not all shards of a split, each once and in order.

    Args:
        parts: Name and keys of each part.
        place: Where they are, for messages.

    Raises:
        DamageError: Names the shards that are missing or twice, and parts of something else.
    """
    there = [(name, tuple(keys)) for name, keys in parts]
    wanted = [_keys(shard) for shard in split.shards]
    if [keys for _, keys in there] == wanted:
        return
    # A shard without samples is known by its part's name alone
    by_keys = {keys or part_name(index): index for index, keys in enumerate(wanted)}
    found = [(name, by_keys.get(keys or name)) for name, keys in there]
    times = Counter(index for _, index in found)
    shards = [shard.path.name for shard in split.shards]
    problems = {
        "missing": [shard for index, shard in enumerate(shards) if not times[index]],
        "twice": [shard for index, shard in enumerate(shards) if times[index] > 1],
        "of no shard of this split": [name for name, index in found if index is None],
    }
    said = [
        f"{what}: {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
        for what, names in problems.items()
        if names
    ]
    raise DamageError(
        f"{place}: the parts are not split {split.name!r} ({'; '.join(said) or 'out of order'}). Run the same command again. "
        "On a cluster --out has to be a folder that all machines share under this very path, or a place in S3."
    )


def cache_parts(tasks: Sequence[Task], frozen: FrozenBackbone, device: torch.device, plan: Plan, advance: Callable[[int], None]) -> None:
    """Run the network over some shards and write their parts, each in the background while the next shard is computed.

    Args:
        tasks: Shards, and the names of their parts.
        frozen: The network, on ``device``.
        advance: Is told how many more images are done.

    Raises:
        DamageError, ResourceError: As the parts of the way say.
    """
    shards = [shard for shard, _ in tasks]
    nothing = np.zeros((0, len(plan.provenance.views), plan.dim), dtype="<f2")
    for task in tasks:
        if not task[0].sidecar.samples:
            _write_part(task, [nothing], [], plan)
    batches = pixel_batches(
        shards,
        batch_size=plan.batch_images,
        crop=frozen.preprocessing.crop,
        views=plan.provenance.views,
        workers=plan.workers,
        threads=plan.threads,
    )
    rows: list[NDArray[np.float16]] = []
    records: list[tuple[str, dict[str, Any]]] = []
    written: Future[None] | None = None
    with out_of_memory(), FetchAhead(shards, window=2) as fetched, contextlib.closing(batches), ThreadPoolExecutor(1) as writer:
        for batch, features in features_of_batches(frozen, batches, device=device, names=[str(shard.path) for shard in shards]):
            fetched.at(batch.shard)
            rows.append(features)
            records.extend(batch.samples)
            advance(len(batch.samples))
            if batch.last:
                if written is not None:
                    written.result()
                written = writer.submit(_write_part, tasks[batch.shard], rows, records, plan)
                rows, records = [], []
        if written is not None:
            written.result()


def _write_part(task: Task, rows: list[NDArray[np.float16]], records: list[tuple[str, dict[str, Any]]], plan: Plan) -> None:
    shard, name = task
    piece = (np.concatenate(rows), table_from_records([records]))
    with exclusive(plan.parts.folder, name, "writing this part", patience=WORKER_SECONDS):
        write_features(plan.parts.folder / name, lambda: [piece], dim=plan.dim, provenance=plan.provenance)
        if plan.parts.url is not None:
            plan.parts.send(name, mark=_mark(shard, plan.provenance))
            (plan.parts.folder / name).unlink()


def cache_parts_on_devices(
    tasks: Sequence[Task], recipe: PortableNetwork, devices: Sequence[torch.device], plan: Plan, advance: Callable[[int], None]
) -> None:
    """Like :func:`cache_parts`, on several devices: every process takes its share of the shards. One that fails ends the others."""
    context: Any = multiprocessing.get_context(START_METHOD)
    messages = context.Queue()
    shares = [(device, list(tasks[index :: len(devices)])) for index, device in enumerate(devices)]
    processes = []
    try:
        for device, share in shares:
            if share:
                process = context.Process(target=_device_process, args=(messages, device, len(devices), share, recipe, plan))
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
                    f"The process of a device ended with code {dead[0]}, perhaps for memory. Run the command again with a smaller "
                    "--batch-size or fewer devices: finished parts are kept."
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


def _device_process(messages: Any, device: torch.device, devices: int, tasks: Sequence[Task], recipe: PortableNetwork, plan: Plan) -> None:
    """One device's share; tells its parent how many images are done, what went wrong, or that it is at its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
    end_with_parent()
    if device.type == "cpu":  # processes that spin on the same cores are slower than one
        torch.set_num_threads(max(1, default_workers() // devices))
    prepare_device(device)
    try:
        cache_parts(tasks, recipe.build().to(device), device, plan, messages.put)
        messages.put(None)
    except CapstreamError as error:
        messages.put(error)
    except (OSError, RuntimeError) as error:  # as the parent would see them, were it alone
        messages.put(ResourceError(f"{device}: {type(error).__name__}: {error}"))
