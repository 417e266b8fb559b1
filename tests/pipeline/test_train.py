import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from model.decoder import Captioner
from model.vocabulary import Vocabulary
from pipeline.batches import CaptionBatch
from pipeline.cache_features import cache_features
from pipeline.checkpoints import Best, Position, best_checkpoint, checkpoint_folder, find_checkpoint, load_training, save_checkpoint
from pipeline.cross_entropy import CrossEntropyStep
from pipeline.interruption import Interrupted
from pipeline.learner import adamw
from pipeline.run import open_run
from pipeline.train import train
from pipeline.train_config import TrainConfig
from pipeline.vocab import write_vocabulary
from shards.atomic import file_sha256
from shards.errors import InputError, MismatchError, OccupiedError
from shards.features import open_features, write_features
from tests.conftest import TINY_MODEL, Small, table_with

ROOT = Path(__file__).parent.parent.parent
SETTINGS = {**TINY_MODEL, "epochs": 2, "checkpoint_every": 3}


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield


def lines(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    clock = ("captions_per_second", "data_wait")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(run)[0] / "model.safetensors")


def same(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def test_a_run_logs_every_ten_steps_and_val_after_each_epoch(small: Small) -> None:
    logged = lines(small.run)
    assert [line["step"] for line in logged if "loss" in line] == [10, 20, 24]
    assert [line["epoch"] for line in logged if "val_loss" in line] == [0, 1]
    assert logged[-1]["val_loss"] < logged[1]["val_loss"]
    assert all(line["perplexity"] == pytest.approx(2.718281828 ** line["loss"], rel=1e-6) for line in logged if "loss" in line)
    assert all(0 <= line["val_cider"] <= 10 for line in logged if "val_loss" in line)
    assert checkpoint_folder(small.run, 24).is_dir()
    assert list(small.run.glob("events.out.tfevents.*"))


def test_raw_and_cached_losses_agree_without_augmentation(small: Small, tmp_path: Path) -> None:
    settings = {**TINY_MODEL, "epochs": 2, "seed": 4, "precision": "fp32"}
    cache_features(shards=small.shards, out=tmp_path / "f", backbone="resnet18", weights="random", precision="fp32", device="cpu")
    shutil.copytree(tmp_path / "f", tmp_path / "raw", ignore=shutil.ignore_patterns("*.h5", "*.tar"))  # the very same random weights
    train(out=tmp_path / "cached", features=tmp_path / "f", settings=settings, device="cpu", max_steps=20)
    train(
        out=tmp_path / "raw",
        shards=small.shards,
        backbone="resnet18",
        weights="random",
        settings={**settings, "augment": "none"},
        device="cpu",
        max_steps=20,
    )
    raw, cached = ([line["mean_loss"] for line in lines(tmp_path / name) if "loss" in line] for name in ("raw", "cached"))
    assert len(raw) == 2
    assert raw == pytest.approx(cached, abs=1e-3)
    raw_val, cached_val = ([line["val_loss"] for line in lines(tmp_path / name) if "val_loss" in line] for name in ("raw", "cached"))
    assert raw_val == pytest.approx(cached_val, abs=1e-3)


def test_augmentation_changes_raw_training(small: Small, tmp_path: Path) -> None:
    losses = []
    for augment in ("tutorial", "none"):
        settings = {**TINY_MODEL, "augment": augment}
        train(out=tmp_path / augment, shards=small.shards, backbone="resnet18", weights="random", settings=settings, device="cpu", max_steps=10)
        losses.append(lines(tmp_path / augment)[0]["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("stop", [1, 12, 17])
def test_a_training_stopped_anywhere_and_resumed_equals_one_that_was_not(small: Small, tmp_path: Path, stop: int) -> None:
    train(out=tmp_path / "whole", features=small.features, settings=SETTINGS, device="cpu")
    train(out=tmp_path / "parts", features=small.features, settings=SETTINGS, device="cpu", max_steps=stop)
    train(out=tmp_path / "parts", resume=True, device="cpu")
    same(tmp_path / "whole", tmp_path / "parts")
    assert lines(tmp_path / "parts")[-1] == lines(tmp_path / "whole")[-1]


def start(small: Small, out: Path, source: str) -> "subprocess.Popen[bytes]":
    settings = {**SETTINGS, "epochs": 6 if source == "features" else 2, "log_every": 1, "precision": "fp32"}
    data = {"features": "features=Path(sys.argv[2])", "shards": "shards=Path(sys.argv[3]), backbone='resnet18', weights='random'"}
    code = (
        "import sys, torch; torch.set_num_threads(2); from pathlib import Path; from pipeline.train import train\n"
        f"train(out=Path(sys.argv[1]), {data[source]}, settings={settings!r}, resume=True, device='cpu')"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(out), str(small.features), str(small.shards)], cwd=ROOT)


def steps_logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"mean_loss") if path.is_file() else 0


def kill_at(child: "subprocess.Popen[bytes]", run: Path, step: int, seconds: float) -> bool:
    """End a training some seconds after it has logged a step; False if it was done by then."""
    deadline = time.monotonic() + 60
    while steps_logged(run) < step and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(seconds)
    running = child.poll() is None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    return running


@pytest.mark.parametrize("source", ["features", "shards"])
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.full)])
def test_a_training_killed_at_random_moments_equals_one_that_was_not_bit_for_bit(small: Small, tmp_path: Path, source: str, kills: int) -> None:
    for name in ("whole", "killed"):
        shutil.copytree(small.features, tmp_path / name, ignore=shutil.ignore_patterns("*.h5", "*.tar"))  # the same random weights
    assert start(small, tmp_path / "whole", source).wait() == 0
    steps = steps_logged(tmp_path / "whole")
    draw = random.Random(kills)
    killed = 0
    for step in sorted(draw.randrange(steps - 4) for _ in range(kills)):
        killed += kill_at(start(small, tmp_path / "killed", source), tmp_path / "killed", step, draw.uniform(0, 0.03))
    assert killed == kills
    assert start(small, tmp_path / "killed", source).wait() == 0
    same(tmp_path / "whole", tmp_path / "killed")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_ctrl_c_saves_and_says_how_to_go_on(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "cli.py", "train", "--features", str(small.features), "--out", str(out), "--epochs", "2000", "--min-count", "1"]
    child = subprocess.Popen([*command, "--embedding-dim", "16", "--hidden-dim", "32"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
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
    assert find_checkpoint(out)[1].step > 0


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(small: Small, tmp_path: Path) -> None:
    train(out=tmp_path / "run", features=small.features, settings=SETTINGS, device="cpu", max_steps=8)
    newest, position, _ = find_checkpoint(tmp_path / "run")
    assert position.step == 8
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (newest / "model.safetensors").write_bytes(bytes(data))
    summary = train(out=tmp_path / "run", resume=True, device="cpu")
    assert any("step-00000008" in note and "before it" in note for note in summary.notes)
    train(out=tmp_path / "whole", features=small.features, settings=SETTINGS, device="cpu")
    same(tmp_path / "whole", tmp_path / "run")


def test_epochs_may_be_raised_on_resuming_and_nothing_else_changed(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out=out, features=small.features, settings={**TINY_MODEL, "epochs": 1}, device="cpu")
    assert train(out=out, resume=True, settings={"epochs": 2}, device="cpu").steps == 24
    for setting, message in (({"lr": 0.5}, r"--lr 0\.001, now 0\.5"), ({"hidden_dim": 33}, "--hidden-dim 32, now 33")):
        with pytest.raises(MismatchError, match=message):
            train(out=out, resume=True, settings=setting, device="cpu")


def test_the_best_captions_and_the_newest_checkpoints_are_kept(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {**TINY_MODEL, "epochs": 6, "keep_checkpoints": 2, "checkpoint_every": 5, "lr": 0.01}
    summary = train(out=out, features=small.features, settings=settings, device="cpu")
    scores = {line["step"]: line["val_cider"] for line in lines(out) if "val_cider" in line}
    assert summary.best is not None
    assert summary.best.cider == max(scores.values()) == scores[summary.best.step]
    assert json.loads((out / "best.json").read_text())["checkpoint"] == checkpoint_folder(out, summary.best.step).name
    assert json.loads((out / "latest.json").read_text())["checkpoint"] == "step-00000072"
    found = {path.name for path in (out / "checkpoints").iterdir()}
    assert len(found - {checkpoint_folder(out, summary.best.step).name}) <= 2
    assert open_run(out, device=torch.device("cpu"), checkpoint="best").position.step == summary.best.step
    assert open_run(out, device=torch.device("cpu")).position.step == 72


def test_checkpoints_come_by_the_clock_too(small: Small, tmp_path: Path) -> None:
    settings = {**TINY_MODEL, "keep_checkpoints": 100, "checkpoint_minutes": 1e-9}
    train(out=tmp_path / "clock", features=small.features, settings=settings, device="cpu", max_steps=5)
    assert len(list((tmp_path / "clock" / "checkpoints").iterdir())) == 5
    train(out=tmp_path / "never", features=small.features, settings={**settings, "checkpoint_minutes": 0}, device="cpu", max_steps=5)
    assert len(list((tmp_path / "never" / "checkpoints").iterdir())) == 1


def test_a_run_without_a_val_split_has_no_best_and_says_so(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.features, tmp_path / "features", ignore=shutil.ignore_patterns("val.*"))
    summary = train(out=tmp_path / "run", features=tmp_path / "features", settings={**TINY_MODEL, "epochs": 1}, device="cpu")
    assert summary.best is None
    with pytest.raises(InputError, match="no best checkpoint"):
        open_run(tmp_path / "run", device=torch.device("cpu"), checkpoint="best")


def test_bf16_trains_as_fp32_does_within_rounding(small: Small, tmp_path: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        settings = {**TINY_MODEL, "epochs": 4, "lr": 0.01, "precision": precision, "log_every": 1}
        train(out=tmp_path / precision, features=small.features, settings=settings, device="cpu")
        losses.append([line["loss"] for line in lines(tmp_path / precision) if "loss" in line])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[0][-1] < 0.7 * losses[0][0]


def test_a_folder_with_a_run_or_something_else_is_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(OccupiedError, match="--resume"):
        train(out=small.run, features=small.features)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OccupiedError, match=r"thesis\.tex"):
        train(out=tmp_path, features=small.features)
    with pytest.raises(InputError, match="one of --features DIR"):
        train(out=tmp_path / "new")


def test_resuming_with_another_vocabulary_or_data_is_refused_naming_both_sides(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(small.run, out)
    run = open_run(out, device=torch.device("cpu"))
    other = Vocabulary((*run.vocabulary.words, "zebra"))
    write_vocabulary(tmp_path / "other.json", other)
    with pytest.raises(MismatchError, match=run.config.vocabulary_digest):
        train(out=out, vocab=tmp_path / "other.json", resume=True, device="cpu")
    with pytest.raises(MismatchError, match="source: features there, shards now"):
        train(out=out, shards=small.shards, backbone="resnet18", weights="random", resume=True, device="cpu")
    write_vocabulary(out / "vocab.json", other)
    with pytest.raises(MismatchError, match=r"vocab\.json.*not the one that the run was trained"):
        open_run(out, device=torch.device("cpu"))


def test_resuming_with_features_made_otherwise_is_refused_with_both_digests(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    shutil.copytree(small.features, tmp_path / "features", ignore=shutil.ignore_patterns("*.h5", "*.tar"))
    cache_features(shards=small.shards, out=tmp_path / "features", backbone="resnet18", weights="random", views="flip", device="cpu")
    before, now = (open_features(folder / "train.h5").digest for folder in (small.features, tmp_path / "features"))
    with pytest.raises(MismatchError, match=f"digest of the training data: {before} there, {now} now"):
        train(out=tmp_path / "run", features=tmp_path / "features", resume=True, device="cpu")
    assert train(out=tmp_path / "views", features=tmp_path / "features", settings={**TINY_MODEL, "epochs": 1}, device="cpu").steps == 12


def test_a_training_that_diverges_stops_with_advice(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out=out, features=small.features, settings={**TINY_MODEL, "lr": 1e6}, device="cpu", max_steps=2)
    captioner = open_run(out, device=torch.device("cpu")).captioner
    with torch.no_grad():
        captioner.decoder.output.bias.fill_(float("inf"))  # what a step too far leaves behind
    optimizer = adamw(captioner, TrainConfig())
    load_training(find_checkpoint(out)[0], captioner, optimizer)
    save_checkpoint(out, captioner, optimizer, Position(epoch=0, step_in_epoch=3, step=3))
    with pytest.raises(InputError, match=r"the training diverged.*smaller --lr than 1000000"):
        train(out=out, resume=True, device="cpu")


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"lr": -1.0},
        {"seed": -1},
        {"lr": float("nan")},
        {"accumulate": 0},
        {"precision": "fp8"},
        {"checkpoint_minutes": -1.0},
    ],
)
def test_impossible_settings_are_refused_by_their_options_name(small: Small, tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(setting)).replace('_', '-')}"):
        train(out=tmp_path / "run", features=small.features, settings=setting)


STRONG = {"recipe": "strong", "own_words": 0.3, "own_words_epochs": 2, "epochs": 2, "batch_size": 16, "min_count": 1, "hidden_dim": 32, "layers": 2}


def test_dropout_and_own_words_do_not_depend_on_where_a_training_was_stopped(small: Small, tmp_path: Path) -> None:
    for name, stops in (("whole", []), ("parts", [5, 9])):
        for stop in stops:
            train(out=tmp_path / name, features=small.features, settings=STRONG, resume=True, device="cpu", max_steps=stop)
            torch.rand(stop)  # whatever else was drawn
        train(out=tmp_path / name, features=small.features, settings=STRONG, resume=True, device="cpu")
    # Where it stopped, the first line of the log after it is a mean of fewer steps.
    whole, parts = ([{k: v for k, v in line.items() if k != "mean_loss"} for line in lines(tmp_path / name)] for name in ("whole", "parts"))
    assert [line for line in parts if line["step"] not in (5, 9)] == whole
    same(tmp_path / "whole", tmp_path / "parts")


def test_a_training_ends_when_captions_have_not_got_better_for_its_patience(small: Small, tmp_path: Path) -> None:
    settings = {**TINY_MODEL, "epochs": 9, "lr": 1e-7, "patience": 2}  # nothing is learned
    summary = train(out=tmp_path / "run", features=small.features, settings=settings, device="cpu")
    scores = [line["val_cider"] for line in lines(tmp_path / "run") if "val_cider" in line]
    best = scores.index(max(scores))
    assert len(scores) == best + 3
    assert summary.steps == 12 * len(scores)
    again = train(out=tmp_path / "run", resume=True, device="cpu")
    assert again.steps == summary.steps
    longer = train(out=tmp_path / "run", resume=True, settings={"patience": 3}, device="cpu")
    assert longer.steps > summary.steps


def test_gradients_are_cut_to_their_norm_and_weights_of_matrices_decay(small: Small, tmp_path: Path) -> None:
    plain = {**TINY_MODEL, "epochs": 1, "precision": "fp32"}
    for name, more in (("plain", {}), ("cut", {"clip_norm": 1e-12}), ("decayed", {"weight_decay": 0.5, "clip_norm": 1e-12})):
        train(out=tmp_path / name, features=small.features, settings={**plain, **more}, device="cpu", max_steps=1)
    before = Captioner(open_run(tmp_path / "plain", device=torch.device("cpu")).config.decoder)
    torch.manual_seed(0)
    before = Captioner(before.config)
    start, cut, decayed, plain_after = before.state_dict(), *(weights(tmp_path / name) for name in ("cut", "decayed", "plain"))
    word = "decoder.embedding.weight"
    assert (plain_after[word] - start[word]).abs().max() > 5e-4
    # Adam divides by the gradients' own size, but for its epsilon of 1e-8: gradients far below it move nothing.
    torch.testing.assert_close(cut[word], start[word], atol=1e-6, rtol=0)
    torch.testing.assert_close(decayed[word], start[word] * (1 - 1e-3 * 0.5), atol=1e-6, rtol=0)
    torch.testing.assert_close(decayed["decoder.output.bias"], start["decoder.output.bias"], atol=1e-6, rtol=0)


def test_a_config_file_and_options_are_taken_together_and_kept_by_the_run(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    (tmp_path / "mine.toml").write_text('recipe = "strong"\nmin-count = 1\nhidden-dim = 24\nembedding-dim = 16\nepochs = 3\nbatch-size = 16\n')
    options = ("train", "--features", small.features, "--out", tmp_path / "run", "--config", tmp_path / "mine.toml", "--device", "cpu")
    assert run_cli(*options, "--epochs", 1, "--tie-weights", "--image-input", "once").exit_code == 0
    config = open_run(tmp_path / "run", device=torch.device("cpu")).config
    assert (config.train.recipe, config.train.epochs, config.train.hidden_dim, config.train.label_smoothing) == ("strong", 1, 24, 0.1)
    assert (config.decoder.image_input, config.decoder.tie_weights, config.decoder.input_dropout) == ("once", True, 0.4)
    refused = run_cli("train", "--out", tmp_path / "run", "--resume", "--label-smoothing", 0.2, "--device", "cpu")
    assert refused.exit_code == 1
    assert "--label-smoothing 0.1, now 0.2" in refused.output


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is pressed while a step is computed."""
    compute = CrossEntropyStep.__call__

    def call(self: CrossEntropyStep, batch: CaptionBatch) -> torch.Tensor:
        if batch.epoch * self.per_epoch + batch.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, batch)

    monkeypatch.setattr(CrossEntropyStep, "__call__", call)


@pytest.mark.parametrize("step", [12, 24])
def test_an_epoch_that_was_stopped_in_its_last_step_is_validated_once(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    settings = {**TINY_MODEL, "epochs": 2}
    with monkeypatch.context() as patched:
        interrupted_at(step, patched)
        with pytest.raises(Interrupted):
            train(out=tmp_path / "run", features=small.features, settings=settings, device="cpu")
    train(out=tmp_path / "whole", features=small.features, settings=settings, device="cpu")
    for _ in range(2):  # the second time there is nothing left to do
        summary = train(out=tmp_path / "run", resume=True, device="cpu")
        assert [line for line in lines(tmp_path / "run") if "val_loss" in line] == [line for line in lines(tmp_path / "whole") if "val_loss" in line]
        assert (find_checkpoint(tmp_path / "run")[1].best is None) == (find_checkpoint(tmp_path / "whole")[1].best is None)
        assert find_checkpoint(tmp_path / "run")[1].best == find_checkpoint(tmp_path / "whole")[1].best
    assert summary.loss is None
    same(tmp_path / "run", tmp_path / "whole")


def test_weights_that_are_no_numbers_are_neither_kept_nor_scored(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = CrossEntropyStep.__call__

    def call(self: CrossEntropyStep, batch: CaptionBatch) -> torch.Tensor:
        loss, number = compute(self, batch), batch.epoch * self.per_epoch + batch.step
        if number == 11 or (number == 5 and self.settings.checkpoint_every == 1):
            self.captioner.decoder.output.bias.grad.fill_(torch.nan)  # type: ignore[union-attr]
        return loss

    monkeypatch.setattr(CrossEntropyStep, "__call__", call)
    for name, every, newest in (("at a checkpoint", 1, 5), ("at the epoch's end", 5, 10)):
        settings = {**TINY_MODEL, "epochs": 2, "checkpoint_every": every, "log_every": 100}
        with pytest.raises(InputError, match="training diverged"):
            train(out=tmp_path / name, features=small.features, settings=settings, device="cpu")
        assert find_checkpoint(tmp_path / name)[1].step == newest
        assert all(value.isfinite().all() for value in weights(tmp_path / name).values())


def test_what_an_older_checkpoint_calls_the_best_is_kept_with_it(small: Small, tmp_path: Path) -> None:
    captioner = open_run(small.run, device=torch.device("cpu")).captioner
    optimizer = torch.optim.AdamW(captioner.parameters())
    for step, best in ((10, 10), (20, 10), (30, 30), (30, 30)):
        save_checkpoint(
            tmp_path, captioner, optimizer, Position(epoch=0, step_in_epoch=step, step=step, best=Best(step=best, cider=best / 10)), keep=2
        )
    (checkpoint_folder(tmp_path, 30) / "model.safetensors").write_bytes(b"damaged")
    _, position, notes = find_checkpoint(tmp_path)
    assert position.step == 20
    assert len(notes) == 1
    assert best_checkpoint(tmp_path, position)[1].step == 10


def test_a_damaged_newest_checkpoint_is_named_to_whoever_captions(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    train(out=tmp_path / "run", resume=True, settings={"epochs": 3}, device="cpu")
    newest, _, _ = find_checkpoint(tmp_path / "run")
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
    path, _, _ = find_checkpoint(tmp_path / "run")
    torch.save(content, path / "training.pt")
    state = json.loads((path / "state.json").read_text())
    state["sha256"]["training.pt"] = file_sha256(path / "training.pt")
    (path / "state.json").write_text(json.dumps(state))
    result = run_cli("train", "--out", tmp_path / "run", "--resume", "--epochs", 3, "--device", "cpu")
    assert result.exit_code == 1
    assert "training.pt: cannot be read" in result.output
    assert "executed" not in result.output.splitlines()


@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 0, 0]])
def test_features_with_fewer_than_two_captioned_images_are_refused_before_a_run_begins(small: Small, tmp_path: Path, counts: list[int]) -> None:
    file = open_features(small.features / "train.h5")
    shutil.copytree(small.features, tmp_path / "features", ignore=shutil.ignore_patterns("*.h5"))
    pieces = [(np.zeros((3, 1, file.dim), np.float16), table_with([counts]))]
    write_features(tmp_path / "features" / "train.h5", lambda: pieces, dim=file.dim, provenance=file.provenance)
    with pytest.raises(InputError, match="at least two captioned images"):
        train(out=tmp_path / "run", features=tmp_path / "features", vocab=small.run / "vocab.json", settings=TINY_MODEL, device="cpu")
    assert not (tmp_path / "run" / "config.json").exists()
