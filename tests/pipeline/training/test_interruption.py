"""A training that was stopped or killed and resumed equals one that was not."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.runs.checkpoints import latest_checkpoint
from pipeline.runs.run import read_config
from pipeline.training.interruption import Interrupted
from tests.conftest import TINY_MODEL, Small
from tests.pipeline.short_runs import interrupted_at, lines, same, train_on_cpu
from tests.processes import run_python, start_python

SETTINGS = {**TINY_MODEL, "epochs": 2, "checkpoint_every": 3}
STRONG = {
    "recipe": "strong",
    "scheduled_sampling": 0.3,
    "scheduled_sampling_epochs": 2,
    "epochs": 2,
    "batch_size": 16,
    "min_count": 1,
    "hidden_dim": 32,
    "layers": 2,
}
pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.mark.parametrize("stop", [1, 12, 17])
def test_a_training_stopped_anywhere_and_resumed_equals_one_that_was_not(small: Small, tmp_path: Path, stop: int) -> None:
    train_on_cpu(out=tmp_path / "uninterrupted", features=small.features, settings=SETTINGS)
    train_on_cpu(out=tmp_path / "parts", features=small.features, settings=SETTINGS, max_steps=stop)
    train_on_cpu(out=tmp_path / "parts", resume=True)
    same(tmp_path / "uninterrupted", tmp_path / "parts")
    assert lines(tmp_path / "parts")[-1] == lines(tmp_path / "uninterrupted")[-1]


KILL = """
import os, signal, threading, time
from pipeline.training.cross_entropy import CrossEntropyStep
compute, at, seconds = CrossEntropyStep.__call__, int(sys.argv[4]), float(sys.argv[5])
def call(self, batch):
    if batch.epoch * self.steps_per_epoch + batch.step >= at:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return compute(self, batch)
CrossEntropyStep.__call__ = call
"""


def train_apart(small: Small, out: Path, source: str, *kill: float, **settings: Any) -> int:
    """Train in a process of its own, which kills itself some seconds after a step has begun, if told so; its exit code."""
    settings = {**SETTINGS, "epochs": 6 if source == "features" else 2, "log_every": 1, "precision": "fp32", **settings}
    data = {"features": "features=Path(sys.argv[2])", "shards": "shards=Path(sys.argv[3]), backbone='resnet18', weights='random'"}
    code = (
        "import sys, torch; torch.set_num_threads(2); from pathlib import Path; from pipeline.training.train import train\n"
        "from pipeline.training.config import DataConfig, RuntimeConfig\n"
        f"{KILL if kill else ''}"
        f"data, runtime = DataConfig({data[source]}), RuntimeConfig(device='cpu')\n"
        f"train(out=Path(sys.argv[1]), data=data, settings={settings!r}, resume=True, runtime=runtime)\n"
        f"{'time.sleep(60)' if kill else ''}"
    )
    return run_python(code, out, small.features, small.shards, *kill).returncode


@pytest.mark.parametrize("source", ["features", pytest.param("shards", marks=pytest.mark.full)])
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.full)])
def test_a_training_killed_at_random_moments_equals_one_that_was_not_bit_for_bit(small: Small, tmp_path: Path, source: str, kills: int) -> None:
    for name in ("uninterrupted", "killed"):
        shutil.copytree(small.features, tmp_path / name, ignore=shutil.ignore_patterns("*.h5", "*.tar"))  # the same random weights
    assert train_apart(small, tmp_path / "uninterrupted", source) == 0
    steps = len([line for line in lines(tmp_path / "uninterrupted") if "mean_loss" in line])
    draw = random.Random(kills)
    for step in sorted(draw.randrange(steps - 4) for _ in range(kills)):
        assert train_apart(small, tmp_path / "killed", source, step, draw.uniform(0, 0.03)) == -signal.SIGKILL
    assert train_apart(small, tmp_path / "killed", source) == 0
    same(tmp_path / "uninterrupted", tmp_path / "killed")
    assert lines(tmp_path / "killed") == lines(tmp_path / "uninterrupted")


@pytest.fixture
def busy_cores() -> Iterator[None]:
    """Processes that keep every core busy, so that a training's threads are interrupted anywhere."""
    others = [start_python("while True: pass") for _ in range(os.cpu_count() or 1)]
    yield
    for process in others:
        process.kill()
        process.communicate()


@pytest.mark.full
@pytest.mark.usefixtures("busy_cores")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("source", ["features", "shards"])
def test_trainings_killed_on_a_busy_machine_equal_one_that_was_not(small: Small, tmp_path: Path, source: str, precision: str) -> None:
    # Several captions of an image, and sums that are long enough for two threads to share them.
    settings = {"captions_per_image": 5, "batch_size": 12, "embedding_dim": 768, "hidden_dim": 64, "precision": precision}
    names = ["uninterrupted", *(f"killed {number}" for number in range(5))]
    for name in names:
        shutil.copytree(small.features, tmp_path / name, ignore=shutil.ignore_patterns("*.h5", "*.tar"))  # the same random weights
    assert train_apart(small, tmp_path / "uninterrupted", source, **settings) == 0
    steps = len([line for line in lines(tmp_path / "uninterrupted") if "mean_loss" in line])
    draw = random.Random(precision + source)
    for name in names[1:]:
        for step in sorted(draw.randrange(steps - 1) for _ in range(2)):
            assert train_apart(small, tmp_path / name, source, step, draw.uniform(0, 0.03), **settings) == -signal.SIGKILL
        assert train_apart(small, tmp_path / name, source, **settings) == 0
        same(tmp_path / "uninterrupted", tmp_path / name)


def test_a_resumed_training_computes_with_the_threads_of_its_run(small: Small, tmp_path: Path) -> None:
    settings = {**SETTINGS, "precision": "fp32"}
    train_on_cpu(out=tmp_path / "uninterrupted", features=small.features, settings=settings)
    train_on_cpu(out=tmp_path / "parts", features=small.features, settings=settings, max_steps=7)
    assert read_config(tmp_path / "parts")[0].train.threads == 2
    torch.set_num_threads(1)
    train_on_cpu(out=tmp_path / "parts", resume=True)
    assert torch.get_num_threads() == 1
    same(tmp_path / "uninterrupted", tmp_path / "parts")
    train_on_cpu(out=tmp_path / "parts", resume=True, settings={"threads": 1, "epochs": 3})
    assert read_config(tmp_path / "parts")[0].train.threads == 1


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_resume(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = (
        "import sys; from cli import cli\n"
        "cli(['train', '--features', sys.argv[1], '--out', sys.argv[2], '--epochs', '2000', '--min-count', '1',"
        " '--embedding-dim', '16', '--hidden-dim', '32'])"
    )
    child = start_python(code, small.features, out)
    deadline = time.monotonic() + 60
    while not (out / "metrics.jsonl").is_file() or not (out / "metrics.jsonl").read_text():
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert f"python cli.py train --out {out} --resume" in errors
    assert "Traceback" not in errors
    assert latest_checkpoint(out)[1].step > 0


def test_dropout_and_scheduled_sampling_do_not_depend_on_where_a_training_was_stopped(small: Small, tmp_path: Path) -> None:
    for name, stops in (("uninterrupted", []), ("parts", [5, 9])):
        for stop in stops:
            train_on_cpu(out=tmp_path / name, features=small.features, settings=STRONG, resume=True, max_steps=stop)
            torch.rand(stop)  # other random numbers in between
        train_on_cpu(out=tmp_path / name, features=small.features, settings=STRONG, resume=True)
    # After a stop, the first line of the log is a mean over fewer steps.
    uninterrupted, parts = (
        [{k: v for k, v in line.items() if k != "mean_loss"} for line in lines(tmp_path / name)] for name in ("uninterrupted", "parts")
    )
    assert [line for line in parts if line["step"] not in (5, 9)] == uninterrupted
    same(tmp_path / "uninterrupted", tmp_path / "parts")


@pytest.mark.parametrize("step", [12, 24])
def test_an_epoch_that_was_stopped_in_its_last_step_is_validated_once(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    settings = {**TINY_MODEL, "epochs": 2}
    with monkeypatch.context() as patched:
        interrupted_at(step, patched)
        with pytest.raises(Interrupted):
            train_on_cpu(out=tmp_path / "run", features=small.features, settings=settings)
    train_on_cpu(out=tmp_path / "uninterrupted", features=small.features, settings=settings)
    for _ in range(2):  # the second time there is nothing left to do
        summary = train_on_cpu(out=tmp_path / "run", resume=True)
        assert [line for line in lines(tmp_path / "run") if "val_loss" in line] == [
            line for line in lines(tmp_path / "uninterrupted") if "val_loss" in line
        ]
        assert (latest_checkpoint(tmp_path / "run")[1].best is None) == (latest_checkpoint(tmp_path / "uninterrupted")[1].best is None)
        assert latest_checkpoint(tmp_path / "run")[1].best == latest_checkpoint(tmp_path / "uninterrupted")[1].best
    assert summary.loss is None
    same(tmp_path / "run", tmp_path / "uninterrupted")
