import platform
import subprocess
import sys

import pytest

from tests import ROOT

FAULTS = """
import resource, sys, torch
from pipeline.execution.devices import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(15):  # the heap takes a few rounds to find its size
    torch.ones(20_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(20_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_was_freed_is_used_again_without_asking_the_system() -> None:
    def faults(mode: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, mode], cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < 0.1 * faults("default")
