import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from model.captioner import Captioner
from model.vocabulary import Vocabulary
from pipeline.captioning.captioner import CaptionerConfig, ImageCaptioner
from pipeline.captions.vocabulary import write_vocabulary
from pipeline.loading.batches import CaptionBatch
from pipeline.runs.checkpoints import TrainingPosition, checkpoint_folder, latest_checkpoint, load_training_state, save_checkpoint
from pipeline.runs.run import open_run
from pipeline.runs.train_config import TrainConfig
from pipeline.training.cross_entropy import CrossEntropyStep
from pipeline.training.train_state import adamw
from shards.errors import DamageError, InputError, MismatchError, OccupiedError
from shards.feature_writer import write_features
from shards.features import open_features
from tests.caching import cache_features
from tests.conftest import TINY_MODEL, Small, table_with
from tests.model.lstm import lstm_of
from tests.pipeline.short_runs import lines, train_on_cpu, weights

pytestmark = pytest.mark.usefixtures("two_threads")


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
    shutil.copytree(tmp_path / "f", tmp_path / "raw", ignore=shutil.ignore_patterns("*.h5", "*.tar"))  # the same random weights
    train_on_cpu(out=tmp_path / "cached", features=tmp_path / "f", settings=settings, max_steps=20)
    train_on_cpu(
        out=tmp_path / "raw",
        shards=small.shards,
        backbone="resnet18",
        weights="random",
        settings={**settings, "augment": "none"},
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
        train_on_cpu(out=tmp_path / augment, shards=small.shards, backbone="resnet18", weights="random", settings=settings, max_steps=10)
        losses.append(lines(tmp_path / augment)[0]["loss"])
    assert losses[0] != losses[1]


def test_epochs_may_be_raised_on_resuming_but_other_settings_may_not_change(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_on_cpu(out=out, features=small.features, settings={**TINY_MODEL, "epochs": 1})
    assert train_on_cpu(out=out, resume=True, settings={"epochs": 2}).steps == 24
    for setting, message in (({"lr": 0.5}, r"`lr` 0\.001, but 0\.5 was given"), ({"hidden_dim": 33}, "`hidden_dim` 32, but 33 was given")):
        with pytest.raises(MismatchError, match=message):
            train_on_cpu(out=out, resume=True, settings=setting)


def test_a_run_without_a_val_split_has_no_best_checkpoint(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.features, tmp_path / "features", ignore=shutil.ignore_patterns("val.*"))
    summary = train_on_cpu(out=tmp_path / "run", features=tmp_path / "features", settings={**TINY_MODEL, "epochs": 1})
    assert summary.best is None
    with pytest.raises(InputError, match="no best checkpoint"):
        open_run(tmp_path / "run", device=torch.device("cpu"), checkpoint="best")


def test_bf16_trains_as_fp32_does_within_rounding(small: Small, tmp_path: Path) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        settings = {**TINY_MODEL, "epochs": 4, "lr": 0.01, "precision": precision, "log_every": 1}
        train_on_cpu(out=tmp_path / precision, features=small.features, settings=settings)
        losses.append([line["loss"] for line in lines(tmp_path / precision) if "loss" in line])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    assert losses[0][-1] < 0.7 * losses[0][0]


def test_a_folder_with_a_run_or_something_else_is_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(OccupiedError, match="`resume`"):
        train_on_cpu(out=small.run, features=small.features)
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OccupiedError, match=r"thesis\.tex"):
        train_on_cpu(out=tmp_path, features=small.features)
    with pytest.raises(InputError, match="give `features`"):
        train_on_cpu(out=tmp_path / "new")


def test_resuming_with_another_vocabulary_or_data_is_refused_naming_both_sides(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(small.run, out)
    run = open_run(out, device=torch.device("cpu"))
    other = Vocabulary((*run.vocabulary.words, "zebra"))
    write_vocabulary(tmp_path / "other.json", other)
    with pytest.raises(MismatchError, match=run.config.vocabulary_digest):
        train_on_cpu(out=out, vocab=tmp_path / "other.json", resume=True)
    with pytest.raises(MismatchError, match="source: expected features, found shards"):
        train_on_cpu(out=out, shards=small.shards, backbone="resnet18", weights="random", resume=True)
    write_vocabulary(out / "vocab.json", other)
    with pytest.raises(MismatchError, match=r"vocab\.json.*not the one that the run was trained"):
        open_run(out, device=torch.device("cpu"))


def test_a_vocabulary_with_one_word_changed_is_refused_for_training_and_captioning(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(small.run, out)
    content = json.loads((out / "vocab.json").read_text())
    words = (*content["words"][:-1], "zebra")
    (tmp_path / "edited.json").write_text(json.dumps({**content, "words": words}))  # with the digest of the original
    write_vocabulary(tmp_path / "other.json", Vocabulary(words))  # of the same size, with its own digest
    with pytest.raises(DamageError, match=r"edited\.json"):
        train_on_cpu(out=tmp_path / "new", features=small.features, vocab=tmp_path / "edited.json", settings=TINY_MODEL)
    for changed, error, says in (
        ("edited.json", DamageError, r"vocab\.json"),
        ("other.json", MismatchError, r"vocab\.json.*not the one that the run was trained"),
    ):
        shutil.copy(tmp_path / changed, out / "vocab.json")
        with pytest.raises(error, match=says):
            ImageCaptioner(CaptionerConfig(run=out, device="cpu"))


def test_resuming_with_other_features_is_refused_with_both_digests(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    shutil.copytree(small.features, tmp_path / "features", ignore=shutil.ignore_patterns("*.h5", "*.tar"))
    cache_features(shards=small.shards, out=tmp_path / "features", backbone="resnet18", weights="random", views="flip", device="cpu")
    before, now = (open_features(folder / "train.h5").digest for folder in (small.features, tmp_path / "features"))
    with pytest.raises(MismatchError, match=f"digest of the training data: expected {before}, found {now}"):
        train_on_cpu(out=tmp_path / "run", features=tmp_path / "features", resume=True)
    assert train_on_cpu(out=tmp_path / "views", features=tmp_path / "features", settings={**TINY_MODEL, "epochs": 1}).steps == 12


def test_a_training_that_diverges_stops_with_advice(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_on_cpu(out=out, features=small.features, settings={**TINY_MODEL, "lr": 1e6}, max_steps=2)
    captioner = open_run(out, device=torch.device("cpu")).captioner
    with torch.no_grad():
        lstm_of(captioner).word_scores.output.bias.fill_(float("inf"))  # as after a step with an exploding gradient
    optimizer = adamw(captioner, TrainConfig())
    load_training_state(latest_checkpoint(out)[0], captioner, optimizer)
    save_checkpoint(out, captioner, optimizer, TrainingPosition(epoch=0, step_in_epoch=3, step=3))
    with pytest.raises(InputError, match=r"the training diverged.*smaller `lr` than 1000000"):
        train_on_cpu(out=out, resume=True)


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
def test_impossible_settings_are_refused_by_name(small: Small, tmp_path: Path, setting: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"`{next(iter(setting))}`"):
        train_on_cpu(out=tmp_path / "run", features=small.features, settings=setting)


def test_a_training_stops_when_its_patience_runs_out(small: Small, tmp_path: Path) -> None:
    settings = {**TINY_MODEL, "epochs": 9, "lr": 1e-7, "patience": 2}  # nothing is learned
    summary = train_on_cpu(out=tmp_path / "run", features=small.features, settings=settings)
    scores = [line["val_cider"] for line in lines(tmp_path / "run") if "val_cider" in line]
    best = scores.index(max(scores))
    assert len(scores) == best + 3
    assert summary.steps == 12 * len(scores)
    again = train_on_cpu(out=tmp_path / "run", resume=True)
    assert again.steps == summary.steps
    longer = train_on_cpu(out=tmp_path / "run", resume=True, settings={"patience": 3})
    assert longer.steps > summary.steps


def test_gradients_are_clipped_to_their_norm_and_weight_matrices_decay(small: Small, tmp_path: Path) -> None:
    plain = {**TINY_MODEL, "epochs": 1, "precision": "fp32"}
    for name, more in (("plain", {}), ("clipped", {"clip_norm": 1e-12}), ("decayed", {"weight_decay": 0.5, "clip_norm": 1e-12})):
        train_on_cpu(out=tmp_path / name, features=small.features, settings={**plain, **more}, max_steps=1)
    before = Captioner(open_run(tmp_path / "plain", device=torch.device("cpu")).config.decoder)
    torch.manual_seed(0)
    before = Captioner(before.config)
    start, clipped, decayed, plain_after = before.state_dict(), *(weights(tmp_path / name) for name in ("clipped", "decayed", "plain"))
    word = "decoder.embedding.weight"
    assert (plain_after[word] - start[word]).abs().max() > 5e-4
    # Adam divides gradients by their own size plus an epsilon of 1e-8: gradients far below it have no effect.
    torch.testing.assert_close(clipped[word], start[word], atol=1e-6, rtol=0)
    torch.testing.assert_close(decayed[word], start[word] * (1 - 1e-3 * 0.5), atol=1e-6, rtol=0)
    torch.testing.assert_close(decayed["decoder.word_scores.output.bias"], start["decoder.word_scores.output.bias"], atol=1e-6, rtol=0)


def test_a_run_records_the_settings_of_a_config_file_and_of_options(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    (tmp_path / "mine.toml").write_text('recipe = "strong"\nmin-count = 1\nhidden-dim = 24\nembedding-dim = 16\nepochs = 3\nbatch-size = 16\n')
    options = ("train", "--features", small.features, "--out", tmp_path / "run", "--config", tmp_path / "mine.toml", "--device", "cpu")
    assert run_cli(*options, "--epochs", 1, "--tie-weights", "--image-input", "once").exit_code == 0
    config = open_run(tmp_path / "run", device=torch.device("cpu")).config
    assert (config.train.recipe, config.train.epochs, config.train.hidden_dim, config.train.label_smoothing) == ("strong", 1, 24, 0.1)
    assert (config.decoder.image_input, config.decoder.tie_weights, config.decoder.input_dropout) == ("once", True, 0.4)
    refused = run_cli("train", "--out", tmp_path / "run", "--resume", "--label-smoothing", 0.2, "--device", "cpu")
    assert refused.exit_code == 1
    assert "--label-smoothing 0.1, but 0.2 was given" in refused.output


def test_weights_with_nan_are_neither_saved_nor_validated(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = CrossEntropyStep.__call__

    def call(self: CrossEntropyStep, batch: CaptionBatch) -> torch.Tensor:
        loss, number = compute(self, batch), batch.epoch * self.steps_per_epoch + batch.step
        if number == 11 or (number == 5 and self.settings.checkpoint_every == 1):
            lstm_of(self.captioner).word_scores.output.bias.grad.fill_(torch.nan)  # type: ignore[union-attr]
        return loss

    monkeypatch.setattr(CrossEntropyStep, "__call__", call)
    for name, every, newest in (("at a checkpoint", 1, 5), ("at the epoch's end", 5, 10)):
        settings = {**TINY_MODEL, "epochs": 2, "checkpoint_every": every, "log_every": 100}
        with pytest.raises(InputError, match="training diverged"):
            train_on_cpu(out=tmp_path / name, features=small.features, settings=settings)
        assert latest_checkpoint(tmp_path / name)[1].step == newest
        assert all(value.isfinite().all() for value in weights(tmp_path / name).values())


@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 0, 0]])
def test_features_with_fewer_than_two_captioned_images_are_refused_before_a_run_begins(small: Small, tmp_path: Path, counts: list[int]) -> None:
    file = open_features(small.features / "train.h5")
    shutil.copytree(small.features, tmp_path / "features", ignore=shutil.ignore_patterns("*.h5"))
    pieces = [(np.zeros((3, 1, 1, file.dim), np.float16), table_with([counts]))]
    write_features(tmp_path / "features" / "train.h5", lambda: pieces, shape=(1, file.dim), provenance=file.provenance)
    with pytest.raises(InputError, match="at least two captioned images"):
        train_on_cpu(out=tmp_path / "run", features=tmp_path / "features", vocab=small.run / "vocab.json", settings=TINY_MODEL)
    assert not (tmp_path / "run" / "config.json").exists()
