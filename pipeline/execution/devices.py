"""Keeps memory that a network's layers give back, instead of asking the system for it anew at every layer.

glibc returns each large block to the system when it is freed; the next layer's block then costs a page fault for every 4 KB. On two
cores this was a third of ResNet-152's time at 32 images a batch (benchmarks/bench_cache.py). And threads get memory of their own, which is
given back all the same: with one for all, batches that threads decode into came a tenth sooner. What it trades: the process keeps its
largest size until it ends.
"""

import contextlib
import ctypes
import functools
import platform
from collections.abc import Iterator

import torch

from shards.errors import InputError, ResourceError, first_line

BATCH_SIZES = {"cpu": 32, "cuda": 256}


# From glibc's malloc.h; mallopt(3) says what they mean.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = (1 << 31) - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc once to keep what is freed; elsewhere nothing happens. Returns whether it took it."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    taken = [libc.mallopt(*setting) for setting in settings]
    return all(taken)


def prepare_device(device: torch.device) -> None:
    """Make a device ready: fp32 means float32 on GPUs too, where torch would take TF32 with its 10 bits for convolutions."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        if device.index is not None:  # pinned memory belongs to the current device
            torch.cuda.set_device(device)
    elif device.type == "cpu":
        keep_freed_memory()


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one.

    Raises:
        InputError: Not a device, or not one of this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: cannot be used here ({first_line(error)}). Try cpu, cuda or auto.") from None
    return device


def pick_devices(name: str) -> list[torch.device]:
    """Where to run one process each: ``auto`` and ``cuda`` are all GPUs, ``cuda:0,cuda:2`` some of them.

    Raises:
        InputError: As :func:`pick_device`.
    """
    if name in ("auto", "cuda") and torch.cuda.device_count() > 1:
        name = ",".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    devices = [pick_device(part.strip()) for part in name.split(",")]
    kinds = sorted({torch.cuda.get_device_name(device) if device.type == "cuda" else device.type for device in devices})
    if len(kinds) > 1:
        raise InputError(f"--device {name}: {', '.join(kinds)} would make features that differ in their last bits. Take devices of one kind.")
    return devices


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn torch's errors about memory into one with advice."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError on GPUs; on CPUs a plain one
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise ResourceError(f"Out of memory ({str(error).splitlines()[0][:200]}). Try a smaller --batch-size: finished parts are kept.") from None
        raise


def images_per_pass(device: torch.device) -> int:
    """Images that the frozen network takes at once, as ``cache-features`` does by default."""
    return BATCH_SIZES.get(device.type, 32)
