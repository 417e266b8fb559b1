"""When checkpoints are saved and which are kept; damaged and hostile ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from pipeline.runs.checkpoints import BestValidation, TrainingPosition, best_checkpoint, checkpoint_folder, latest_checkpoint, save_checkpoint
from pipeline.runs.run import open_run
from shards.digests import file_sha256
from tests.conftest import TINY_MODEL, Small
from tests.pipeline.short_runs import lines, same, train_on_cpu

SETTINGS = {**TINY_MODEL, "epochs": 2, "checkpoint_every": 3}
pytestmark = pytest.mark.usefixtures("two_threads")


def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(small: Small, tmp_path: Path) -> None:
    train_on_cpu(out=tmp_path / "run", features=small.features, settings=SETTINGS, max_steps=8)
    newest, position, _ = latest_checkpoint(tmp_path / "run")
    assert position.step == 8
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (newest / "model.safetensors").write_bytes(bytes(data))
    summary = train_on_cpu(out=tmp_path / "run", resume=True)
    assert any("step-00000008" in note and "the checkpoint before it" in note for note in summary.notes)
    train_on_cpu(out=tmp_path / "uninterrupted", features=small.features, settings=SETTINGS)
    same(tmp_path / "uninterrupted", tmp_path / "run")


def test_the_best_and_the_newest_checkpoints_are_kept(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**TINY_MODEL, "epochs": 6, "keep_checkpoints": 2, "checkpoint_every": 5, "lr": 0.01}
    summary = train_on_cpu(out=out, features=small.features, settings=settings)
    scores = {line["step"]: line["val_cider"] for line in lines(out) if "val_cider" in line}
    assert summary.best is not None
    assert summary.best.cider == max(scores.values()) == scores[summary.best.step]
    assert json.loads((out / "best.json").read_text())["checkpoint"] == checkpoint_folder(out, summary.best.step).name
    assert json.loads((out / "latest.json").read_text())["checkpoint"] == "step-00000072"
    found = {path.name for path in (out / "checkpoints").iterdir()}
    assert len(found - {checkpoint_folder(out, summary.best.step).name}) <= 2
    assert open_run(out, device=torch.device("cpu"), checkpoint="best").position.step == summary.best.step
    assert open_run(out, device=torch.device("cpu")).position.step == 72


def test_time_based_checkpoints(small: Small, tmp_path: Path) -> None:
    settings = {**TINY_MODEL, "keep_checkpoints": 100, "checkpoint_minutes": 1e-9}
    train_on_cpu(out=tmp_path / "clock", features=small.features, settings=settings, max_steps=5)
    assert len(list((tmp_path / "clock" / "checkpoints").iterdir())) == 5
    train_on_cpu(out=tmp_path / "never", features=small.features, settings={**settings, "checkpoint_minutes": 0}, max_steps=5)
    assert len(list((tmp_path / "never" / "checkpoints").iterdir())) == 1


def test_a_time_based_checkpoint_due_after_an_epochs_last_step_is_saved_after_its_validation(small: Small, tmp_path: Path) -> None:
    # With so small a learning rate the captions do not change: the second epoch is not the best.
    settings = {**TINY_MODEL, "keep_checkpoints": 100, "checkpoint_minutes": 1e-9, "lr": 1e-12}
    train_on_cpu(out=tmp_path, features=small.features, settings=settings, max_steps=26)
    assert sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir()) == list(range(1, 27))
    state = json.loads((checkpoint_folder(tmp_path, 24) / "state.json").read_text())["position"]
    assert (state["epoch"], state["step_in_epoch"], state["best"]["step"]) == (2, 0, 12)


def test_the_best_checkpoint_according_to_an_older_one_is_kept_with_it(small: Small, tmp_path: Path) -> None:
    captioner = open_run(small.run, device=torch.device("cpu")).captioner
    optimizer = torch.optim.AdamW(captioner.parameters())
    for step, best in ((10, 10), (20, 10), (30, 30), (30, 30)):
        save_checkpoint(
            tmp_path,
            captioner,
            optimizer,
            TrainingPosition(epoch=0, step_in_epoch=step, step=step, best=BestValidation(step=best, cider=best / 10)),
            keep=2,
        )
    (checkpoint_folder(tmp_path, 30) / "model.safetensors").write_bytes(b"damaged")
    _, position, notes = latest_checkpoint(tmp_path)
    assert position.step == 20
    assert len(notes) == 1
    assert best_checkpoint(tmp_path, position)[1].step == 10


def test_opening_a_run_reports_a_damaged_newest_checkpoint(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    train_on_cpu(out=tmp_path / "run", resume=True, settings={"epochs": 3})
    newest, _, _ = latest_checkpoint(tmp_path / "run")
    (newest / "model.safetensors").write_bytes(b"damaged")
    (note,) = open_run(tmp_path / "run", device=torch.device("cpu")).notes
    assert newest.name in note


@pytest.mark.parametrize(("name", "value"), [("step", "24"), ("step", -7), ("step", 1.5), ("epoch", None), ("step_in_epoch", -3), ("epoch", 10**30)])
def test_a_checkpoint_with_an_impossible_position_is_refused(
    small: Small, tmp_path: Path, run_cli: Callable[..., Result], name: str, value: object
) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        state = json.loads(path.read_text())
        state["position"][name] = value
        path.write_text(json.dumps(state))
    result = run_cli("train", "--out", tmp_path / "run", "--resume", "--epochs", 3, "--device", "cpu")
    assert result.exit_code == 1
    assert "checkpoint" in result.output


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.mark.parametrize("content", [{"optimizer": Hostile()}, {"optimizer": {}}, [1]], ids=["code", "nothing", "a list"])
def test_a_hostile_optimizer_state_is_refused_and_nothing_of_it_runs(
    small: Small, tmp_path: Path, run_cli: Callable[..., Result], content: object
) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    path, _, _ = latest_checkpoint(tmp_path / "run")
    torch.save(content, path / "training.pt")
    state = json.loads((path / "state.json").read_text())
    state["sha256"]["training.pt"] = file_sha256(path / "training.pt")
    (path / "state.json").write_text(json.dumps(state))
    result = run_cli("train", "--out", tmp_path / "run", "--resume", "--epochs", 3, "--device", "cpu")
    assert result.exit_code == 1
    assert "training.pt: cannot be read" in result.output
    assert "executed" not in result.output.splitlines()
