"""Every decoder, from grid features to captions: trained, interrupted, resumed, averaged, made self-critical, evaluated, and together."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import Tensor

from model.decoder_config import DECODERS
from model.decoders.transformer import KeysValues, MultiHead
from model.decoding import Decoding
from pipeline.captioning.captioner import CaptionerConfig, ImageCaptioner
from pipeline.evaluation.evaluate import EvaluationFiles, EvaluationSource, evaluate
from pipeline.evaluation.scoring import ScoringConfig
from pipeline.features.cache_features import CacheConfig, cache_features
from pipeline.runs.run import open_run
from pipeline.sharding.read_samples import shard_samples
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.interruption import Interrupted
from pipeline.training.train import train
from shards.dataset import open_split
from shards.errors import MismatchError, SettingsError
from shards.features import open_features
from tests.conftest import Small
from tests.pipeline.short_runs import interrupted_at, lines, same, train_on_cpu

SHAPES: dict[str, dict[str, Any]] = {"lstm": {}, "attention": {}, "transformer": {"layers": 1, "encoder_layers": 1, "heads": 2}}
NO_JAVA = ScoringConfig(java=False)


def settings_of(decoder: str, **more: Any) -> dict[str, Any]:
    tiny = {"min_count": 1, "embedding_dim": 16, "hidden_dim": 24, "batch_size": 16, "epochs": 2, "precision": "fp32"}
    return {**tiny, "decoder": decoder, **SHAPES[decoder], **more}


@pytest.fixture(scope="module")
def runs(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each decoder on the grid's features, with one vocabulary."""
    base = tmp_path_factory.mktemp("runs")
    for decoder in SHAPES:
        train_on_cpu(out=base / decoder, features=grid, settings=settings_of(decoder))
    return {decoder: base / decoder for decoder in SHAPES}


def test_every_decoder_is_tested_here() -> None:
    assert set(SHAPES) == set(DECODERS)


def test_the_grids_mean_is_what_the_pooled_network_gives(small: Small, grid: Path, tmp_path: Path) -> None:
    (tmp_path / "backbone.safetensors").write_bytes((grid / "backbone.safetensors").read_bytes())
    cache_features(shards=small.shards, out=tmp_path, config=CacheConfig(backbone="resnet18", weights="random", device="cpu", precision="fp32"))
    for split in ("train", "val"):
        whole, pooled = open_features(grid / f"{split}.h5"), open_features(tmp_path / f"{split}.h5")
        assert whole.features.shape[1:] == (1, 4, 512)
        assert (whole.provenance.layout, whole.provenance.mean_is_pooled) == ("grid", True)
        np.testing.assert_allclose(whole.features.mean(axis=2, dtype=np.float32), pooled.features[:, :, 0], atol=0.02)
        assert len({row.tobytes() for row in whole.features[0, 0]}) == 4


@pytest.mark.parametrize("decoder", [pytest.param("lstm", marks=pytest.mark.full), "attention", "transformer"])
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, marks=pytest.mark.full),
        {"accumulate": 3, "captions_per_image": 5, "scheduled_sampling": 0.2, "average_last": 1, "output_dropout": 0.2},
    ],
    ids=["plain", "all"],
)
def test_an_interrupted_training_resumes_with_equal_weights(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str, more: dict[str, Any]
) -> None:
    settings = settings_of(decoder, log_every=1, **more)
    train_on_cpu(out=tmp_path / "whole", features=grid, settings=settings)
    with monkeypatch.context() as patch:
        interrupted_at(3, patch)
        with pytest.raises(Interrupted):
            train_on_cpu(out=tmp_path / "stopped", features=grid, settings=settings)
    train_on_cpu(out=tmp_path / "stopped", resume=True)
    same(tmp_path / "whole", tmp_path / "stopped")
    assert lines(tmp_path / "whole") == lines(tmp_path / "stopped")


@pytest.mark.parametrize("decoder", SHAPES)
def test_self_critical_training_starts_from_a_run_and_changes_all_its_weights(
    grid: Path, runs: dict[str, Path], tmp_path: Path, decoder: str
) -> None:
    settings = {"self_critical": True, "epochs": 1, "precision": "fp32", "samples": 2}
    train_on_cpu(out=tmp_path / "run", features=grid, init_from=runs[decoder], settings=settings, max_steps=2)
    before, after = (open_run(run, device=torch.device("cpu")) for run in (runs[decoder], tmp_path / "run"))
    dropout: dict[str, Any] = {"feature_dropout": 0.0, "output_dropout": 0.0}
    assert replace(after.config.decoder, **dropout) == replace(before.config.decoder, **dropout)
    for (name, old), new in zip(before.captioner.named_parameters(), after.captioner.parameters(), strict=True):
        assert not torch.equal(old, new), name


@pytest.mark.parametrize("decoder", SHAPES)
def test_a_photograph_has_the_caption_of_its_cached_features(small: Small, grid: Path, runs: dict[str, Path], tmp_path: Path, decoder: str) -> None:
    config = CaptionerConfig(run=runs[decoder], device="cpu", decoding=Decoding(beam=2))
    files = EvaluationFiles(out=tmp_path / "x.scores.json")
    cached = evaluate(config, EvaluationSource(features=grid), scoring=NO_JAVA, files=files)
    files = EvaluationFiles(out=tmp_path / "y.scores.json")
    raw = evaluate(config, EvaluationSource(shards=small.shards), scoring=NO_JAVA, files=files)
    assert raw.captions == cached.captions
    # The original photographs would be resized, and those of the shards have been stored as JPEG since.
    images = [jpeg for _, jpeg, _ in shard_samples(open_split(small.shards, "val").shards[0])]
    found = [image.captions[0].caption for image in ImageCaptioner(config).caption(images)]
    assert found == [caption for _, _, caption in cached.captions]


def test_runs_of_all_decoders_caption_together(small: Small, grid: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    first, *others = runs.values()
    config = CaptionerConfig(run=first, ensemble=others, device="cpu")
    cached = evaluate(config, EvaluationSource(features=grid), scoring=NO_JAVA, files=EvaluationFiles(out=tmp_path / "x.scores.json"))
    raw = evaluate(config, EvaluationSource(shards=small.shards), scoring=NO_JAVA, files=EvaluationFiles(out=tmp_path / "y.scores.json"))
    assert raw.captions == cached.captions
    shutil.copytree(grid, tmp_path / "pooled", ignore=shutil.ignore_patterns("*.h5"))
    network = CacheConfig(backbone="resnet18", weights="random", device="cpu", precision="fp32", splits=["val"])
    cache_features(shards=small.shards, out=tmp_path / "pooled", config=network)
    with pytest.raises(MismatchError, match="layout is 'grid' in the first, 'pooled' in the second"):
        evaluate(config, EvaluationSource(features=tmp_path / "pooled"), scoring=NO_JAVA, files=EvaluationFiles(out=tmp_path / "z.scores.json"))


def test_a_decoder_of_one_vector_records_pooled_features_and_is_refused_where_their_mean_is_something_else(
    small: Small, runs: dict[str, Path], tmp_path: Path
) -> None:
    assert open_run(runs["lstm"], device=torch.device("cpu")).config.network.layout == "pooled"
    assert open_run(runs["attention"], device=torch.device("cpu")).config.network.layout == "grid"
    config = CacheConfig(backbone="timm:mobilenetv3_small_050", weights="random", device="cpu", precision="fp32", layout="grid", splits=["train"])
    cache_features(shards=small.shards, out=tmp_path / "other", config=config)
    with pytest.raises(
        MismatchError, match=r"holds grid features of timm:mobilenetv3_small_050, whose mean over the positions is not what this network pools"
    ):
        train_on_cpu(out=tmp_path / "run", features=tmp_path / "other", settings=settings_of("lstm"))
    train_on_cpu(out=tmp_path / "run", features=tmp_path / "other", settings=settings_of("attention"), max_steps=1)


def test_training_on_features_that_stay_in_their_file_gives_the_same_weights(grid: Path, tmp_path: Path) -> None:
    for name, memory_bytes in (("memory", None), ("file", 0)):
        runtime = RuntimeConfig(device="cpu", feature_memory_bytes=memory_bytes)
        train(out=tmp_path / name, data=DataConfig(features=grid), settings=settings_of("attention"), runtime=runtime)
    same(tmp_path / "memory", tmp_path / "file")
    assert lines(tmp_path / "memory") == lines(tmp_path / "file")


def test_the_encoder_over_the_positions_is_trained_in_the_runs_precision(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, forward = [], MultiHead.memory

    def recorded(self: MultiHead, values: Tensor) -> KeysValues:
        found = forward(self, values)
        if self.training:
            seen.append(found[0].dtype)
        return found

    monkeypatch.setattr(MultiHead, "memory", recorded)
    train_on_cpu(out=tmp_path / "run", features=grid, settings=settings_of("transformer", precision="bf16"), max_steps=1)
    assert set(seen) == {torch.bfloat16}


def test_the_command_line_trains_a_decoder_on_grid_features(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    out = tmp_path / "grid"
    cached = run_cli(
        "cache-features", "--shards", small.shards, "--out", out, "--features", "grid:1", "--backbone", "resnet18", "--weights", "random"
    )
    assert "Next: python cli.py train --features" in cached.output
    assert "--decoder attention" in cached.output.splitlines()[-1]
    trained = run_cli("train", "--features", out, "--out", tmp_path / "r", "--decoder", "attention", "--epochs", 1, "--feature-memory", 0)
    assert trained.exit_code == 0, trained.output
    assert open_run(tmp_path / "r", device=torch.device("cpu")).config.decoder.embedding_dim == 512  # the recipe's, for this decoder
    wrong = run_cli("cache-features", "--shards", small.shards, "--out", tmp_path / "x", "--features", "grid:0")
    assert wrong.exit_code == 2
    assert "--features: 'grid:0' is not a layout of features: it must be pooled, grid or grid:N with N from 1 to 64." in wrong.output
    wrong = run_cli("train", "--features", out, "--out", tmp_path / "x", "--decoder", "attention", "--layers", 2)
    assert wrong.exit_code == 2
    assert "--layers 2: the decoder attention has no such setting. Omit it." in wrong.output


@pytest.mark.parametrize(("decoder", "setting"), [("attention", {"layers": 2}), ("lstm", {"heads": 4}), ("transformer", {"heads": 3})])
def test_settings_that_do_not_go_with_the_decoder_are_refused_before_anything_is_written(
    grid: Path, tmp_path: Path, decoder: str, setting: dict[str, Any]
) -> None:
    with pytest.raises(SettingsError, match=rf"^`{next(iter(setting))}` {next(iter(setting.values()))}: "):
        train_on_cpu(out=tmp_path / "run", features=grid, settings={**settings_of(decoder), **setting})
    assert not (tmp_path / "run").exists()
