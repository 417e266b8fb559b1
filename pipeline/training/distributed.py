"""The processes of a training: a single one, or those that torchrun started on one or several machines.

Every process works on its slice of the same batches (:class:`pipeline.loading.order.RankSlice`); only the main process (rank 0) writes files.
"""

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import DistError

from pipeline.loading.order import RankSlice
from shards.errors import CapstreamError, InputError, ReportedElsewhereError, ResourceError, SettingsError

R = TypeVar("R")
# How long a process waits for the others. The main process's scoring and checkpoints have to fit.
TIMEOUT = datetime.timedelta(minutes=30)
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# Parts of the RuntimeErrors that gloo raises when another process is gone; it has no exception type for this.
CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Read timeout", "Timed out waiting", "Connection refused")


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The processes of a training, seen from one of them: its rank, and their number. The default is a single process."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process of rank 0, which writes files and messages."""
        return self.rank == 0

    @property
    def rank_slice(self) -> RankSlice:
        """The slice of every batch that this process works on."""
        return RankSlice(rank=self.rank, size=self.world_size)

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.world_size > 1:
            distributed.all_reduce(torch.zeros(1))  # with gloo, on CPUs: NCCL's barrier needs a GPU per process

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes, on every process."""
        if self.world_size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(sums)
        result: list[float] = sums.tolist()
        return result

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum ``tensor`` over all processes, in place and without gradients, and return it."""
        if self.world_size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def all_gather(self, items: Sequence[R]) -> list[R]:
        """The items of all processes, in order of rank, on every process."""
        if self.world_size == 1:
            return list(items)
        # Object collectives unpickle what they receive; here it comes from our own processes.
        gathered: list[Any] = [None] * self.world_size
        distributed.all_gather_object(gathered, list(items))
        return [item for rank_items in gathered for item in rank_items]

    def main_process_first(self, function: Callable[[], R]) -> R:
        """Run ``function`` in the main process, then in the others, which find the files that it has written."""
        if not self.is_main_process:
            self.barrier()
        result = function()
        if self.is_main_process:
            self.barrier()
        return result

    def run_on_all(self, function: Callable[[], R]) -> R:
        """Run ``function`` in all processes. If it fails in any of them, it fails in all, and the lowest of these ranks reports the error.

        Raises:
            CapstreamError: The error of this process, or :class:`ReportedElsewhereError`.
        """
        result, own_error = None, None
        try:
            result = function()
        except CapstreamError as error:
            own_error = error
        failed_ranks = self.all_gather([self.rank] if own_error is not None else [])
        if own_error is not None and failed_ranks[0] == self.rank:
            raise own_error
        if failed_ranks:
            raise ReportedElsewhereError(f"Process {failed_ranks[0]} reports the error.")
        assert own_error is None
        return result  # type: ignore[return-value]


def is_distributed() -> bool:
    """Whether torchrun, or a compatible launcher, started this process as one of several."""
    return all(name in os.environ for name in TORCHRUN_VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def local_device(device: str) -> str:
    """The device of this process: under torchrun, each process of a machine uses the GPU of its local rank.

    Raises:
        InputError: The machine has fewer GPUs than processes, or ``device`` names a single GPU.
    """
    if not is_distributed() or device == "cpu" or not torch.cuda.is_available():
        return device
    local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device not in ("auto", "cuda"):
        raise SettingsError(f"`device` {device}: under torchrun each process uses the GPU of its local rank. Omit it, or choose cuda or cpu.")
    if local_rank >= gpus:
        raise InputError(
            f"torchrun started a process with local rank {local_rank} on a machine with {gpus} GPUs. Start it with --nproc-per-node={gpus}, "
            "or choose `device` cpu."
        )
    return f"cuda:{local_rank}"


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the other processes, and yield the :class:`ProcessGroup` of this one.

    Raises:
        ResourceError: The other processes cannot be reached, or one of them ended.
    """
    if not is_distributed():
        yield ProcessGroup()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=TIMEOUT)
        yield ProcessGroup(rank=distributed.get_rank(), world_size=distributed.get_world_size())
    except (DistError, RuntimeError) as error:
        if not isinstance(error, DistError) and not any(sign in str(error) for sign in CONNECTION_LOST):
            raise
        raise ResourceError(
            "Another process of this training ended or cannot be reached; its own message says why. The checkpoints are kept: start all "
            "processes again with `resume`."
        ) from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
