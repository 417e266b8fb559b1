"""The missing parts of a feature file, made on one device or on several: a process for each device, a part for each shard.

A process of another device gets a recipe and not the network: it builds the network itself, and takes over only the tensors that the
first device's photographs have corrected, so that all parts are made by the same ones.
"""

import contextlib
import multiprocessing
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load

from model.encoder import FrozenBackbone
from model.precision import folded, rebuilt
from pipeline.arithmetic import prepare_device
from pipeline.backbones import Network, reopen_backbone
from pipeline.executors import START_METHOD, default_workers, end_with_parent
from pipeline.frozen_pass import features_of_batches
from pipeline.pixels import pixel_batches
from shards.caption_table import table_from_records
from shards.errors import CapstreamError, ResourceError
from shards.features import Provenance, open_features, write_features
from shards.manifest import Shard
from shards.remote import FetchAhead

Task = tuple[Shard, Path]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a split's pass runs, apart from the network."""

    provenance: Provenance
    dim: int
    batch_images: int
    workers: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A network as another process can build it.

    Attributes:
        network: What it is.
        weights_kept: Where random weights are kept.
        precision, kept: Of the lowered network.
        state: The lowered network's tensors as safetensors bytes; None in fp32.
    """

    network: Network
    weights_kept: Path
    precision: str
    kept: tuple[str, ...]
    state: bytes | None

    def build(self) -> FrozenBackbone:
        """The network, on the CPU."""
        frozen = folded(reopen_backbone(self.network, kept=self.weights_kept))
        return frozen if self.state is None else rebuilt(frozen, self.precision, self.kept, load(self.state))


def part_is_whole(part: Path, shard: Shard, provenance: Provenance) -> bool:
    """Whether a part is there, undamaged, and made from this shard in this way."""
    if not part.is_file():
        return False
    try:
        there = open_features(part)
    except CapstreamError:
        return False
    return asdict(there.provenance) == asdict(provenance) and there.table.keys == tuple(s.key for s in shard.sidecar.samples)


def cache_parts(tasks: Sequence[Task], frozen: FrozenBackbone, device: torch.device, plan: Plan, advance: Callable[[int], None]) -> None:
    """Run the network over some shards and write their parts, each in the background while the next shard is computed.

    Args:
        tasks: Shards, and where their parts go.
        frozen: The network, on ``device``.
        advance: Is told how many more images are done.

    Raises:
        DamageError, ResourceError: As the parts of the way say.
    """
    shards = [shard for shard, _ in tasks]
    nothing = np.zeros((0, len(plan.provenance.views), plan.dim), dtype="<f2")
    for shard, part in tasks:
        if not shard.sidecar.samples:
            _write_part(part, [nothing], [], plan)
    batches = pixel_batches(shards, batch_size=plan.batch_images, crop=frozen.preprocessing.crop, views=plan.provenance.views, workers=plan.workers)
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
                written = writer.submit(_write_part, tasks[batch.shard][1], rows, records, plan)
                rows, records = [], []
        if written is not None:
            written.result()


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn torch's errors about memory into one with advice."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError on GPUs; on CPUs a plain one
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise ResourceError(f"Out of memory ({str(error).splitlines()[0][:200]}). Try a smaller --batch-size: finished parts are kept.") from None
        raise


def _write_part(path: Path, rows: list[NDArray[np.float16]], records: list[tuple[str, dict[str, Any]]], plan: Plan) -> None:
    piece = (np.concatenate(rows), table_from_records([records]))
    write_features(path, lambda: [piece], dim=plan.dim, provenance=plan.provenance)


def cache_parts_on_devices(
    tasks: Sequence[Task], recipe: Recipe, devices: Sequence[torch.device], plan: Plan, advance: Callable[[int], None]
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


def _device_process(messages: Any, device: torch.device, devices: int, tasks: Sequence[Task], recipe: Recipe, plan: Plan) -> None:
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
