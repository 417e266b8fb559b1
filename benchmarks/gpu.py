"""Utilization of a GPU during a measurement, sampled with nvidia-smi, if there is a GPU and nvidia-smi is installed."""

import contextlib
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Sequence

import torch

EVERY_MS = 200


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[list[float]]:
    """A list that, after the block, holds the device's utilization in percent, a sample every :data:`EVERY_MS`; empty if it is unknown."""
    samples: list[float] = []
    tool = shutil.which("nvidia-smi")
    if device.type != "cuda" or tool is None:
        yield samples
        return
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # nvidia-smi's indices ignore CUDA_VISIBLE_DEVICES
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={EVERY_MS}", f"--id={name}"]
    process = subprocess.Popen([tool, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield samples
    finally:
        process.terminate()
        text, _ = process.communicate()
        samples += parsed(text)


def parsed(text: str) -> list[float]:
    """The numbers in nvidia-smi's lines. It may write ``[N/A]``, and its last line may be incomplete."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found.append(float(line))
    return found


def busy(samples: Sequence[float]) -> float | None:
    """Mean share of time in which kernels ran, between the first and the last sample with any (without start-up); None if none ran."""
    active = [place for place, sample in enumerate(samples) if sample > 0]
    return statistics.mean(samples[active[0] : active[-1] + 1]) / 100 if active else None
