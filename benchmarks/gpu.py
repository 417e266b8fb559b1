"""What a GPU was doing while something else measured: nvidia-smi's samples, if there is a GPU and an nvidia-smi."""

import contextlib
import shutil
import statistics
import subprocess
from collections.abc import Iterator, Sequence

import torch

EVERY_MS = 200


@contextlib.contextmanager
def watched(device: torch.device) -> Iterator[list[float]]:
    """A list that holds, after the block, the device's utilisation in percent, a sample every :data:`EVERY_MS`; empty where nobody can say."""
    samples: list[float] = []
    tool = shutil.which("nvidia-smi")
    if device.type != "cuda" or tool is None:
        yield samples
        return
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # counts as nvidia-smi counts, whatever CUDA_VISIBLE_DEVICES says
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--loop-ms={EVERY_MS}", f"--id={name}"]
    process = subprocess.Popen([tool, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield samples
    finally:
        process.terminate()
        text, _ = process.communicate()
        samples += parsed(text)


def parsed(text: str) -> list[float]:
    """The numbers among nvidia-smi's lines; it may write ``[N/A]``, and its last line may be cut."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            found.append(float(line))
    return found


def busy(samples: Sequence[float]) -> float | None:
    """Mean share of the time in which kernels ran, from the first to the last sample with any: without start-up; None: never."""
    at_work = [place for place, sample in enumerate(samples) if sample > 0]
    return statistics.mean(samples[at_work[0] : at_work[-1] + 1]) / 100 if at_work else None
