"""Several processes train like a single one.

torchrun starts them as a user starts them where it matters: it ends the others when a process dies. Elsewhere the processes come from
:mod:`tests.processes`, with the environment that torchrun gives them.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.runs.checkpoints import latest_checkpoint
from pipeline.training.distributed import ProcessGroup
from tests import ROOT
from tests.conftest import TINY_MODEL, Small
from tests.pipeline.gradients import gradients
from tests.pipeline.short_runs import train_on_cpu
from tests.processes import PythonProcess, start_python


def torchrun(processes: int, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(child: "subprocess.Popen[str]", seconds: float = 120) -> tuple[str, str]:
    try:
        return child.communicate(timeout=seconds)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)


def launch(processes: int, code: str, *arguments: object) -> list[PythonProcess]:
    """Start the processes of a training, as torchrun does on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start_python(code, *arguments, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(processes)]


def command(*arguments: object) -> tuple[str, ...]:
    """Code and arguments of a command of the CLI."""
    return ("import sys; from cli import cli; cli(sys.argv[1:])", *map(str, arguments))


def ended(processes: list[PythonProcess], seconds: float = 120) -> tuple[set[int | None], str, str]:
    """Exit codes of all processes, and what they have printed to standard output and standard error."""
    try:
        printed = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return {process.returncode for process in processes}, "".join(out for out, _ in printed), "".join(err for _, err in printed)


def options(**settings: Any) -> list[str]:
    return [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.mark.parametrize(
    ("kind", "processes", "chunks", "units", "decoder"),
    [
        ("features", 2, 1, 16, "lstm"),
        ("features", 2, 3, 16, "lstm"),
        ("features", 3, 1, 2, "lstm"),
        ("shards", 2, 1, 6, "lstm"),
        pytest.param("features", 2, 3, 16, "attention", marks=pytest.mark.full),
        pytest.param("features", 3, 1, 2, "transformer", marks=pytest.mark.full),
        ("features", 2, 3, 16, "transformer"),
    ],
    ids=[
        "cached",
        "in chunks",
        "fewer units than processes",
        "raw",
        "attention, in chunks",
        "transformer, fewer units than processes",
        "transformer, in chunks",
    ],
)
def test_gradients_equal_those_of_one_process_on_the_same_batch(
    small: Small, grid: Path, tmp_path: Path, kind: str, processes: int, chunks: int, units: int, decoder: str
) -> None:
    data = small.shards if kind == "shards" else small.features if decoder == "lstm" else grid
    alone = gradients(kind, data, chunks=1, units=units, processes=ProcessGroup(), decoder=decoder)
    code = "from tests.pipeline.gradients import main; main()"
    codes, _, errors = ended(launch(processes, code, tmp_path / "out.safetensors", kind, data, chunks, units, decoder))
    assert codes == {0}, errors
    together = load_file(tmp_path / "out.safetensors")
    assert together.keys() == alone.keys()
    assert sum(value.abs().max() > 1e-4 for value in alone.values()) > 10  # the gradients are not all zero
    for name, value in alone.items():
        assert torch.allclose(together[name], value, rtol=1e-5, atol=1e-5), name


def test_accumulating_gradients_over_chunks_gives_the_same_gradients(small: Small) -> None:
    full, accumulated = (gradients("features", small.features, chunks=chunks, units=16, processes=ProcessGroup()) for chunks in (1, 5))
    for name, value in full.items():
        assert torch.allclose(accumulated[name], value, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("torchrun_starts", [False, pytest.param(True, marks=pytest.mark.full)], ids=["processes", "torchrun"])
def test_processes_train_like_one_and_either_resumes_the_others_run(small: Small, tmp_path: Path, torchrun_starts: bool) -> None:
    settings = {**TINY_MODEL, "precision": "fp32", "log_every": 1, "accumulate": 2}
    train_on_cpu(out=tmp_path / "alone", features=small.features, settings={**settings, "epochs": 3})
    words = ["train", "--features", small.features, "--out", tmp_path / "run", "--device", "cpu", *options(**settings, epochs=2)]
    if torchrun_starts:
        child = torchrun(2, "cli.py", *words)
        output, errors = finished(child)
        assert child.returncode == 0, errors
    else:
        codes, output, errors = ended(launch(2, *command(*words)))
        assert codes == {0}, errors
    assert output.count("trained to step 24") == 1
    assert output.count("Next: ") == 1
    train_on_cpu(out=tmp_path / "run", resume=True, settings={"epochs": 3})
    runs = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()] for name in ("alone", "run")]
    for one, other in zip(*runs, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() & {"step", "epoch", "loss", "val_loss"}:
            assert other[name] == pytest.approx(one[name], rel=1e-4), name


def long_training(small: Small, out: Path) -> list[object]:
    """A command that does not end by itself, with a checkpoint every few steps."""
    settings = {**TINY_MODEL, "epochs": 3000, "checkpoint_every": 5, "log_every": 1}
    return ["train", "--features", small.features, "--out", out, "--device", "cpu", *options(**settings)]


def wait_for_checkpoint(out: Path, child: "subprocess.Popen[str] | PythonProcess") -> None:
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.05)


def workers(child: "subprocess.Popen[str]") -> dict[int, int]:
    """Process ids of torchrun's processes by rank."""
    found = {}
    for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        environment = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
        found[int(environment[b"RANK"])] = int(pid)
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds torchrun's processes by /proc")
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.full), 1])
def test_a_process_that_dies_ends_the_others_and_the_run_can_be_resumed(small: Small, tmp_path: Path, rank: int) -> None:
    child = torchrun(2, "cli.py", *long_training(small, tmp_path / "run"))
    wait_for_checkpoint(tmp_path / "run", child)
    os.kill(workers(child)[rank], signal.SIGKILL)
    started = time.monotonic()
    _, errors = finished(child, seconds=60)
    assert child.returncode != 0
    assert time.monotonic() - started < 50
    assert "Traceback" not in errors.split("elastic")[0]
    step = latest_checkpoint(tmp_path / "run")[1].step
    assert train_on_cpu(out=tmp_path / "run", resume=True, max_steps=step + 3).steps == step + 3


def test_patience_stops_all_processes_in_the_same_epoch(small: Small, tmp_path: Path) -> None:
    # With so small a learning rate the captions do not change: the first epoch is the best.
    settings = {**TINY_MODEL, "lr": 1e-12, "epochs": 9, "patience": 2}
    training = command("train", "--features", small.features, "--out", tmp_path / "run", "--device", "cpu", *options(**settings))
    codes, output, errors = ended(launch(2, *training))
    assert codes == {0}, errors
    assert "trained to step 36" in output
    assert ", after step 12" in output


def test_ctrl_c_ends_all_processes_after_a_checkpoint(small: Small, tmp_path: Path) -> None:
    processes = launch(2, *command(*long_training(small, tmp_path / "run")))
    wait_for_checkpoint(tmp_path / "run", processes[0])
    for process in processes:
        process.send_signal(signal.SIGINT)
    codes, _, errors = ended(processes, seconds=60)
    assert 0 not in codes
    assert_stopped_once(tmp_path / "run", errors)


@pytest.mark.full
def test_ctrl_c_at_torchrun_ends_all_processes_after_a_checkpoint(small: Small, tmp_path: Path) -> None:
    child = torchrun(2, "cli.py", *long_training(small, tmp_path / "run"))
    wait_for_checkpoint(tmp_path / "run", child)
    os.killpg(child.pid, signal.SIGINT)
    _, errors = finished(child, seconds=60)
    assert child.returncode != 0
    assert_stopped_once(tmp_path / "run", errors)


def assert_stopped_once(run: Path, errors: str) -> None:
    assert errors.count("Resume with: python cli.py train") == 1, errors
    stopped = int(errors.split("Stopped after step ")[1].split(maxsplit=1)[0])
    assert latest_checkpoint(run)[1].step == stopped


def test_an_error_is_reported_once(small: Small) -> None:
    codes, _, errors = ended(launch(2, *command("train", "--features", small.features, "--out", small.run, "--device", "cpu")))
    assert 0 not in codes
    assert errors.count("already holds a run") == 1


def test_self_critical_training_works_with_fewer_images_in_a_batch_than_processes(small: Small, tmp_path: Path) -> None:
    settings = options(out=tmp_path / "run", features=small.features, batch_size=2, epochs=1, samples=2, log_every=1, device="cpu")
    codes, _, errors = ended(launch(3, *command("train", "--self-critical", "--from", small.run, *settings)))
    assert codes == {0}, errors
    rewards = [line["reward"] for line in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) if "reward" in line]
    assert len(rewards) == 18
    assert all(0 <= reward <= 10 for reward in rewards)
    assert max(rewards) > 0
