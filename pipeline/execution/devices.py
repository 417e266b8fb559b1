"""Devices: find them, prepare them, and how many images they take at a time."""

import contextlib
from collections.abc import Iterator

import torch

from pipeline.execution.allocator import keep_freed_memory
from shards.errors import InputError, ResourceError, first_line

# Images per forward pass of the frozen network, by type of device.
BATCH_SIZES = {"cpu": 32, "cuda": 256}


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the GPU if there is one, otherwise the CPU.

    Raises:
        InputError: Not a device, or not one of this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"`device` {name}: not available ({first_line(error)}). Try cpu, cuda or auto.") from None
    return device


def pick_devices(name: str) -> list[torch.device]:
    """The devices that run one process each: ``auto`` and ``cuda`` are all GPUs, ``cuda:0,cuda:2`` some of them.

    Raises:
        InputError: As :func:`pick_device`; or the devices are of different models.
    """
    if name in ("auto", "cuda") and torch.cuda.device_count() > 1:
        name = ",".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    devices = [pick_device(part.strip()) for part in name.split(",")]
    models = sorted({torch.cuda.get_device_name(device) if device.type == "cuda" else device.type for device in devices})
    if len(models) > 1:
        raise InputError(f"`device` {name}: features from {', '.join(models)} would differ in their last bits. Choose devices of one model.")
    return devices


def prepare_device(device: torch.device) -> None:
    """Prepare a device for this process.

    fp32 means float32 on GPUs too: torch would use TF32, with a mantissa of 10 bits, for convolutions. On CPUs freed memory is kept
    (:mod:`pipeline.execution.allocator`).
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        if device.index is not None:  # pinned memory belongs to the current device
            torch.cuda.set_device(device)
    elif device.type == "cpu":
        keep_freed_memory()


def images_per_pass(device: torch.device) -> int:
    """How many images the frozen network processes at once, by default."""
    return BATCH_SIZES.get(device.type, 32)


@contextlib.contextmanager
def out_of_memory() -> Iterator[None]:
    """Turn torch's out-of-memory errors into a :class:`ResourceError` with advice."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError on GPUs; a plain RuntimeError on CPUs
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise ResourceError(f"Out of memory ({first_line(error)}). Try a smaller `batch_size`: finished parts are kept.") from None
        raise
