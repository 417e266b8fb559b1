"""The same bits every time: what a training fixes so that a resumed one equals one that was not interrupted.

The order of a sum decides its last bits. On a CPU it depends on the number of threads, which a run therefore records, and on how MKL splits a
product among them. MKL promises the same split in every process, however busy the machine is, only in its mode for conditional numerical
reproducibility (oneMKL Developer Guide, "Obtaining Numerically Reproducible Results"). Its branch AUTO fixes cache sizes, the order of
reductions and the schedule, and keeps the fastest instructions: it gave the same bits as without it, at the same speed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fixed_threads(threads: int | None) -> Iterator[None]:
    """Compute with this number of threads, and with MKL's reproducible products; None: change nothing, as on a GPU.

    MKL reads its mode at its first product: a process that has multiplied matrices before keeps the mode that it has. A mode that the user
    has chosen with ``MKL_CBWR`` is kept.
    """
    if threads is None:
        yield
        return
    os.environ.setdefault("MKL_CBWR", "AUTO")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
