"""Ctrl-C during a training: the step is finished, what was done is saved, and all processes end together."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from pipeline.training.distributed import ProcessGroup

# Presses of Ctrl-C in so short a time are one: torchrun hands the terminal's on.
ONE_PRESS_SECONDS = 2.0
# Steps of a GPU are so short that asking the others at each would be felt.
GPU_STEPS_BETWEEN_QUESTIONS = 16


class Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C was pressed; everything up to now is saved."""


@contextmanager
def interruptible(processes: ProcessGroup, device: torch.device) -> Iterator[Callable[[int], bool]]:
    """Yield a function that tells, at a step, whether Ctrl-C was pressed or the process told to end, in any process of the training.

    The step is finished first. A second Ctrl-C, two seconds later or more, ends at once.
    """
    pressed: float | None = None
    between = GPU_STEPS_BETWEEN_QUESTIONS if device.type == "cuda" and processes.size > 1 else 1

    def remember(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        now = time.monotonic()
        if pressed is not None and now - pressed > (ONE_PRESS_SECONDS if processes.size > 1 else 0):
            raise KeyboardInterrupt
        pressed = now if pressed is None else pressed

    def asked(step: int) -> bool:
        return step % between == 0 and processes.sum(float(pressed is not None))[0] > 0

    try:
        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us there answers Ctrl-C
        yield lambda _: False
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
