"""Keeps memory that a network's layers give back, instead of asking the system for it anew at every layer.

glibc returns each large block to the system when it is freed; the next layer's block then costs a page fault for every 4 KB. On two
cores this was a third of ResNet-152's time at 32 images a batch (benchmarks/bench_cache.py). And threads get memory of their own, which is
given back all the same: with one for all, batches that threads decode into came a tenth sooner. What it trades: the process keeps its
largest size until it ends.
"""

import ctypes
import functools
import platform

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
