"""A few drawn scenes in place of real images."""

import time
from pathlib import Path

import pytest

from benchmarks import workload
from benchmarks.workload import Usage
from tests import processes
from tests.conftest import Small

MODULE = "import runpy, sys; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
COMMAND = """
import resource, sys
from cli import cli
try:
    cli(sys.argv[1:])
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture
def dataset(small: Small, tmp_path: Path) -> Path:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "images").symlink_to(small.source / "images")
    (tmp_path / "dataset" / "captions.json").write_bytes((small.source / "captions_train.json").read_bytes())
    return tmp_path / "dataset"


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a benchmark runs in a process of its own is forked with PyTorch imported: how long the start takes does not matter here."""

    def run_python(script: object, *arguments: object, watch: bool = False) -> Usage:
        assert script == "cli.py"
        began = time.perf_counter()
        done = processes.run_python(COMMAND, *arguments, check=True)
        *output, kilobytes = done.stdout.splitlines()
        peak = int(kilobytes) * 1024
        return Usage(seconds=time.perf_counter() - began, peak_bytes=peak, together_bytes=peak if watch else None, output="\n".join(output))

    def run_module(module: str, *arguments: str) -> str:
        return processes.run_python(MODULE, module, *arguments, check=True).stdout

    monkeypatch.setattr(workload, "run_python", run_python)
    monkeypatch.setattr(workload, "run_module", run_module)
