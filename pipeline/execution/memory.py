"""How much memory this process may still take."""

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Memory in bytes that can be taken without swapping: what the system has available, or less where a container has a limit.

    Where the system does not tell, half of its memory.
    """
    return min(_of_the_system(), _of_the_container())


def _of_the_system() -> int:
    try:
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else 4 << 30


def _of_the_container() -> int:
    """What the limit of the control group (version 2) leaves; unlimited where there is none."""
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return max(int(limit) - int(used), 0)
    except (OSError, ValueError):  # "max", or no control group
        return 1 << 62
