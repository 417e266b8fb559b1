"""Tell glibc to keep freed memory, so that the layers of a network reuse it.

By default glibc returns each large block to the system when it is freed, and the next layer's block costs a page fault for every 4 KB. On two
cores this was a third of ResNet-152's time at 32 images a batch (benchmarks/bench_cache.py). Threads have memory pools of their own, which
are returned too: with one pool for all threads, the batches that they decode into were ready a tenth sooner. The cost: the process keeps
its largest size until it ends.
"""

import ctypes
import functools
import platform

# From glibc's malloc.h; mallopt(3) explains them.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = (1 << 31) - 1


@functools.cache
def keep_freed_memory() -> bool:
    """Tell glibc once to keep freed memory; returns whether it does. Does nothing with other C libraries."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER), (_M_ARENA_MAX, 1))
    accepted = [libc.mallopt(*setting) for setting in settings]
    return all(accepted)
