"""SIGTERM ends a command as Ctrl-C does: everything is released, one line says how to resume, and the exit code is 143."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from shards.dataset import read_dataset_file
from tests import ROOT
from tests.conftest import Small
from tests.processes import start_python

STOPPED = "Stopped. Finished work is kept. To continue, run the same command again (train: with --resume).\n"


def terminated(command: list[object], started: Callable[[], bool], *, group: bool, wait: float = 0.0) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command that gets SIGTERM once it has started: alone, or with its workers."""
    words = [sys.executable, "cli.py", *map(str, command)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not started():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(wait)
        (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, small: Small) -> Path:
    """Captions of so many images that sharding them takes a while."""
    folder = tmp_path_factory.mktemp("many")
    names = sorted(path.name for path in (small.source / "images").iterdir())
    for number in range(600):
        os.link(small.source / "images" / names[number % len(names)], folder / f"{number}.jpg")
    (folder / "captions.csv").write_text("image,caption\n" + "".join(f"{number}.jpg,a dog\n" for number in range(600)))
    return folder


@pytest.mark.parametrize("group", [False, True], ids=["alone", "with its workers"])
@pytest.mark.parametrize(
    "begun", [".train.lock", pytest.param("train-000001.json", marks=pytest.mark.full)], ids=["while its workers start", "while it works"]
)
def test_shard_ends_without_warnings_and_resumes(many: Path, tmp_path: Path, run_cli: Callable[..., Result], begun: str, group: bool) -> None:
    out = tmp_path / "o"
    command = ["shard", "--images", many, "--captions", many / "captions.csv", "--out", out, "--size", 64, "--shard-size", 10, "--workers", 2]
    assert terminated(command, (out / begun).exists, group=group) == (143, "", STOPPED)
    kept = len(list(out.glob("train-*.json")))
    assert kept < 60
    assert not (out / ".train.lock").exists()
    result = run_cli(*command[:-1], 1, "--max-rejects", 0)
    assert result.exit_code == 0, result.output
    assert kept == 0 or f"({kept} complete already)" in result.output
    assert read_dataset_file(out).splits["train"]["images"] == 600


@pytest.mark.full
@pytest.mark.parametrize("group", [False, True], ids=["alone", "with its workers"])
def test_cache_features_ends_without_warnings(many: Path, small: Small, tmp_path: Path, run_cli: Callable[..., Result], group: bool) -> None:
    shards, out = tmp_path / "s", tmp_path / "f"
    sharding = ["--images", many, "--captions", many / "captions.csv", "--out", shards, "--size", 64, "--shard-size", 50, "--workers", 1]
    assert run_cli("shard", *sharding).exit_code == 0
    command = ["cache-features", "--shards", shards, "--out", out, "--backbone", "resnet18", "--weights", "random", "--device", "cpu", "--workers", 1]
    code, output, errors = terminated(command, lambda: any(out.glob(".*part*")) or any(out.glob(".train*")), group=group)
    assert (code, output) == (143, "")
    assert errors.endswith(f"\n{STOPPED}")
    assert "resource_tracker" not in errors
    assert "Traceback" not in errors


def test_train_saves_a_checkpoint_and_returns_143(small: Small, tmp_path: Path) -> None:
    code = "import sys; from cli import cli; cli(['train', '--features', sys.argv[1], '--out', sys.argv[2], '--epochs', '2000', '--min-count', '1'])"
    process = start_python(code, small.features, tmp_path / "r")
    deadline = time.monotonic() + 60
    while not (tmp_path / "r/metrics.jsonl").is_file() or not (tmp_path / "r/metrics.jsonl").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"python cli.py train --out {tmp_path / 'r'} --resume" in errors
