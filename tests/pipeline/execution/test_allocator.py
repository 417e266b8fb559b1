import platform

import pytest

from tests.processes import run_python

FAULTS = """
import resource, sys, torch
from pipeline.execution.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(15):  # the heap takes a few rounds to find its size
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_freed_memory_is_reused_without_page_faults() -> None:
    def faults(mode: str) -> int:
        return int(run_python(FAULTS, mode, check=True).stdout)

    assert faults("keep") < 0.1 * faults("default")
