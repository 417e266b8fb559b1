"""Keeps memory that a network's layers give back, instead of asking the system for it anew at every layer.

glibc returns each large block to the system when it is freed; the next layer's block then costs a page fault for every 4 KB. On two
cores this was a third of ResNet-152's time at 32 images a batch (benchmarks/bench_cache.py). What it trades: the process keeps its
largest size until it ends.
"""

import ctypes
import functools
import platform

# From glibc's malloc.h; mallopt(3) says what they mean.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = (1 << 31) - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc once to keep what is freed; elsewhere nothing happens. Returns whether it took it."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, _NEVER))
