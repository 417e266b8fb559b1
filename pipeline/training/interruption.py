"""Ctrl-C during a training: all processes finish the current step, a checkpoint is saved, and they end together."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from pipeline.training.distributed import ProcessGroup

# Under torchrun one Ctrl-C arrives several times: from the terminal, and forwarded by torchrun. Signals this close together count as one.
SAME_PRESS_SECONDS = 2.0
# A GPU's steps are so short that an all-reduce at every one would slow training down.
GPU_STEPS_BETWEEN_CHECKS = 16


class Interrupted(Exception):  # noqa: N818 - not an error
    """The training was interrupted by Ctrl-C or SIGTERM, after a checkpoint was saved. ``signal`` is the one that this process received."""

    signal = signal.SIGINT


@contextmanager
def interruptible(processes: ProcessGroup, device: torch.device) -> Iterator[Callable[[int], bool]]:
    """Yield a function that takes a global step and tells whether any process has received Ctrl-C or SIGTERM.

    All processes have to call it at the same steps. A second Ctrl-C, under torchrun two seconds later or more, ends the process at once.
    """
    signalled_at: float | None = None
    received = signal.SIGINT
    check_every = GPU_STEPS_BETWEEN_CHECKS if device.type == "cuda" and processes.world_size > 1 else 1

    def handle_signal(number: int, _frame: FrameType | None) -> None:
        nonlocal signalled_at, received
        now, received = time.monotonic(), signal.Signals(number)
        if signalled_at is not None and now - signalled_at > (SAME_PRESS_SECONDS if processes.world_size > 1 else 0):
            raise KeyboardInterrupt
        signalled_at = now if signalled_at is None else signalled_at

    def is_interrupted(step: int) -> bool:
        return step % check_every == 0 and processes.sum(float(signalled_at is not None))[0] > 0

    try:
        previous_handlers = {number: signal.signal(number, handle_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where signals cannot be handled: the caller handles Ctrl-C
        yield lambda _: False
        return
    try:
        yield is_interrupted
    except Interrupted as interrupted:
        interrupted.signal = received
        raise
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
