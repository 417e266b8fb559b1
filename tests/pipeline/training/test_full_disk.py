"""A training whose disk fills up ends with one line, and the checkpoints before stay."""

from pathlib import Path

import pytest

from pipeline.runs.checkpoints import latest_checkpoint
from tests.conftest import TINY_MODEL, Small
from tests.processes import start_python

# When a file of this name is opened for writing the n-th time, the system refuses to write files beyond the limit from then on.
CODE = """
import os, resource, signal, sys
from pathlib import Path
from cli import cli
os.dup2(1, 2)  # a pipe, which has no limit
sys.stderr = open(2, "w", closefd=False)
name, number, limit, *arguments = sys.argv[1:]
opened = 0
def hook(event, values):
    global opened
    if event == "open" and Path(str(values[0])).name == name and values[2] & 0o100:  # O_CREAT
        opened += 1
        if opened == int(number):
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.addaudithook(hook)
cli(arguments)
"""


@pytest.mark.parametrize(
    ("name", "number", "limit", "steps"),
    [(".model.safetensors.tmp", 2, 2000, 1), (".training.pt.tmp", 3, 2000, 2), (".state.json.tmp", 1, 10, None), ("metrics.jsonl", 1, 100, None)],
)
def test_a_full_disk_is_one_line_and_finished_checkpoints_stay(
    small: Small, tmp_path: Path, name: str, number: int, limit: int, steps: int | None
) -> None:
    options = [part for key, value in TINY_MODEL.items() for part in (f"--{key.replace('_', '-')}", value)]
    train = ["train", "--features", small.features, "--out", tmp_path / "run", "--device", "cpu", "--checkpoint-every", 1, "--log-every", 1, *options]
    process = start_python(CODE, name, number, limit, *train, pipes=True)
    printed, _ = process.communicate()
    assert process.returncode == 1
    error, *others = printed.splitlines()
    assert not others, printed
    assert f"{tmp_path / 'run'}: no space left (" in error
    assert error.endswith("Free some, then run again with --resume: what was saved is kept.")
    assert not list((tmp_path / "run").rglob(".*.tmp"))
    if steps is not None:
        assert latest_checkpoint(tmp_path / "run")[1].step == steps
