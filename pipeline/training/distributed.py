"""The processes that train together: one alone, or those that torchrun has started, on one machine or several.

Every process works on its share of the same batches (:class:`pipeline.loading.order.Part`); only the first writes.
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
from shards.errors import CapstreamError, InputError, ReportedElsewhereError, ResourceError

R = TypeVar("R")
# How long a process waits for the others: validation and checkpoints of the first one have to fit.
PATIENCE = datetime.timedelta(minutes=30)
LAUNCHED_BY = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# How gloo, which has no error of its own, says that another process is gone.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Read timeout", "Timed out waiting", "Connection refused")


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """A process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def rank_slice(self) -> RankSlice:
        return RankSlice(rank=self.rank, size=self.size)

    def barrier(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.all_reduce(torch.zeros(1))  # on CPUs, whatever computes: a barrier of NCCL would want a device of its own

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(sums)
        found: list[float] = sums.tolist()
        return found

    def gather(self, mine: Sequence[R]) -> list[R]:
        """Every process's items, in order of rank; on all processes."""
        if self.size == 1:
            return list(mine)
        # Token strings and numbers from our own processes, as torch's object collectives send them.
        everyone: list[Any] = [None] * self.size
        distributed.all_gather_object(everyone, list(mine))
        return [item for items in everyone for item in items]

    def main_first(self, function: Callable[[], R]) -> R:
        """Run ``function`` in the first process, then in the others: what it makes is there when they look."""
        if not self.is_main:
            self.barrier()
        result = function()
        if self.is_main:
            self.barrier()
        return result

    def run_all(self, function: Callable[[], R]) -> R:
        """Run ``function`` in all processes; if it fails in any, all end, and one of them says why.

        Raises:
            CapstreamError: Of this process, or :class:`ReportedElsewhereError`.
        """
        result, problem = None, None
        try:
            result = function()
        except CapstreamError as error:
            problem = error
        failed = self.gather([self.rank] if problem is not None else [])
        if problem is not None and failed[0] == self.rank:
            raise problem
        if failed:
            raise ReportedElsewhereError(f"Process {failed[0]} says what went wrong.")
        assert problem is None
        return result  # type: ignore[return-value]


def launched() -> bool:
    """Whether torchrun, or something like it, has started this process as one of several."""
    return all(name in os.environ for name in LAUNCHED_BY) and int(os.environ["WORLD_SIZE"]) > 1


def own_device(device: str) -> str:
    """The device of this process: with several on one machine, each takes the GPU of its number.

    Raises:
        InputError: There are fewer GPUs than processes.
    """
    if not launched() or device == "cpu" or not torch.cuda.is_available():
        return device
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device not in ("auto", "cuda"):
        raise InputError(f"--device {device}: under torchrun each process takes the GPU of its number. Leave --device away, or say cuda or cpu.")
    if local >= there:
        raise InputError(f"torchrun started a process number {local} on a machine with {there} GPUs. Give --nproc-per-node={there}, or --device cpu.")
    return f"cuda:{local}"


@contextmanager
def process_group(device: torch.device) -> Iterator[ProcessGroup]:
    """The :class:`ProcessGroup` of this process while the block runs.

    Raises:
        ResourceError: The others cannot be reached, or one of them ended.
    """
    if not launched():
        yield ProcessGroup()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        distributed.init_process_group(backend, timeout=PATIENCE)
        yield ProcessGroup(rank=distributed.get_rank(), size=distributed.get_world_size())
    except (DistError, RuntimeError) as error:
        if not isinstance(error, DistError) and not any(sign in str(error) for sign in LOST):
            raise
        raise ResourceError(
            "Another process of this training ended or cannot be reached; its own message says why. What was saved is kept: start all of "
            "them again with --resume."
        ) from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def all_reduce_sum(value: Tensor, processes: ProcessGroup) -> Tensor:
    """``value`` added up over all processes, in place, without gradients."""
    if processes.size > 1:
        distributed.all_reduce(value)
    return value
