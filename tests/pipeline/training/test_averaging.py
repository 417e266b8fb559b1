"""Captioning uses averaged weights; the training itself continues with its own."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.captioner import Captioner
from pipeline.runs.checkpoints import TrainingPosition, checkpoint_folder, latest_checkpoint, load_model, load_training_state, save_checkpoint
from pipeline.runs.run import open_run
from pipeline.runs.train_config import TrainConfig
from pipeline.training.interruption import Interrupted
from pipeline.training.train_state import adamw
from tests.conftest import TINY_MODEL, Small
from tests.model.lstm import lstm_of
from tests.pipeline.short_runs import interrupted_at, lines, train_on_cpu


def weights_at(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoint_folder(out, step) / "model.safetensors")


def assert_mean(found: dict[str, torch.Tensor], members: list[dict[str, torch.Tensor]]) -> None:
    for key, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.stack([member[key] for member in members]).mean(dim=0), msg=key)


def test_captioning_uses_the_average_of_the_weights_after_the_last_epochs(small: Small, tmp_path: Path) -> None:
    settings = {**TINY_MODEL, "epochs": 4, "keep_checkpoints": 100, "checkpoint_every": 6, "lr": 0.01}  # 12 steps an epoch
    for name, more in (("plain", {}), ("mean", {"average_last": 3})):
        train_on_cpu(out=tmp_path / name, features=small.features, settings={**settings, **more})
    ends = [weights_at(tmp_path / "plain", step) for step in (24, 36, 48)]
    assert_mean(weights_at(tmp_path / "mean", 12), [weights_at(tmp_path / "plain", 12)])
    for step, epochs in ((24, 1), (30, 1), (36, 2), (42, 2), (48, 3)):
        assert_mean(weights_at(tmp_path / "mean", step), ends[:epochs])
    trained = torch.load(checkpoint_folder(tmp_path / "mean", 48) / "training.pt", weights_only=True)["weights"]
    assert all(torch.equal(trained[key], value) for key, value in ends[-1].items())
    losses = [[line["val_loss"] for line in lines(tmp_path / name) if "val_loss" in line] for name in ("plain", "mean")]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2] != losses[1][2]


@pytest.mark.parametrize("stop", [30, 36, 40])
def test_a_stopped_training_that_averages_weights_equals_one_that_was_not_stopped(small: Small, tmp_path: Path, stop: int) -> None:
    settings = {**TINY_MODEL, "epochs": 4, "lr": 0.01, "average_last": 3}
    train_on_cpu(out=tmp_path / "uninterrupted", features=small.features, settings=settings)
    train_on_cpu(out=tmp_path / "stopped", features=small.features, settings=settings, max_steps=stop)
    train_on_cpu(out=tmp_path / "stopped", resume=True)
    uninterrupted, stopped = (weights_at(tmp_path / name, 48) for name in ("uninterrupted", "stopped"))
    assert all(torch.equal(stopped[key], value) for key, value in uninterrupted.items())
    scores = [[line["val_cider"] for line in lines(tmp_path / name) if "val_cider" in line] for name in ("uninterrupted", "stopped")]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 4


@pytest.mark.parametrize(("epochs", "of"), [(3, {3: 1}), (5, {3: 1, 4: 1, 5: 2})])
def test_the_average_starts_anew_when_a_run_is_resumed_for_more_epochs(small: Small, tmp_path: Path, epochs: int, of: dict[int, int]) -> None:
    settings = {**TINY_MODEL, "keep_checkpoints": 100, "checkpoint_every": 12, "lr": 0.01}
    train_on_cpu(out=tmp_path / "plain", features=small.features, settings={**settings, "epochs": 5})
    out = tmp_path / "mean"
    train_on_cpu(out=out, features=small.features, settings={**settings, "epochs": 2, "average_last": 2})
    ends = [weights_at(tmp_path / "plain", 12 * epoch) for epoch in range(1, 6)]
    assert_mean(weights_at(out, 24), ends[:2])
    train_on_cpu(out=out, resume=True, settings={"epochs": epochs})
    for epoch, count in of.items():  # at most two, and none of those in the average before
        assert_mean(weights_at(out, 12 * epoch), ends[epoch - count : epoch])


def test_a_step_that_is_saved_again_with_an_average_is_loaded_with_it(small: Small, tmp_path: Path) -> None:
    run = open_run(small.run, device=torch.device("cpu"))
    optimizer = adamw(run.captioner, TrainConfig())
    mean = copy.deepcopy(run.captioner)
    with torch.no_grad():
        lstm_of(mean).word_scores.output.bias.add_(1)
    ended = TrainingPosition(epoch=0, step_in_epoch=12, step=12)
    save_checkpoint(tmp_path, run.captioner, optimizer, ended)
    validated = TrainingPosition(epoch=1, step_in_epoch=0, step=12, averaged=1)
    save_checkpoint(tmp_path, run.captioner, optimizer, validated, average=mean)
    path, position, notes = latest_checkpoint(tmp_path)
    assert (position, notes) == (validated, [])
    found = Captioner(run.config.decoder)
    load_model(path, found)
    assert torch.equal(lstm_of(found).word_scores.output.bias, lstm_of(mean).word_scores.output.bias)
    load_training_state(path, found, adamw(found, TrainConfig()))
    assert torch.equal(lstm_of(found).word_scores.output.bias, lstm_of(run.captioner).word_scores.output.bias)


def test_a_training_stopped_in_its_last_step_has_its_average_after_resuming(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # With so small a learning rate the captions do not change: the last epoch is not the best one, which would always be saved.
    settings = {**TINY_MODEL, "epochs": 3, "lr": 1e-12, "average_last": 2}
    with monkeypatch.context() as patched:
        interrupted_at(36, patched)
        with pytest.raises(Interrupted):
            train_on_cpu(out=tmp_path, features=small.features, settings=settings)
    assert latest_checkpoint(tmp_path)[1].averaged == 2
    before = weights_at(tmp_path, 36)
    train_on_cpu(out=tmp_path, resume=True)
    assert all(torch.equal(value, before[key]) for key, value in weights_at(tmp_path, 36).items())
    position = latest_checkpoint(tmp_path)[1]
    assert (position.epoch, position.averaged) == (3, 2)
    assert position.best is not None
    assert position.best.step < position.step
    assert "weights" in torch.load(checkpoint_folder(tmp_path, 36) / "training.pt", weights_only=True)
