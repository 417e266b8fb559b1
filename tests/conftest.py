"""What tests share: the real data, where it is available, and one small dataset, cached and trained once per test process."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save

from cli import cli
from model.encoder import with_crop
from model.networks import random_info
from pipeline.datasets.synthetic import synthesize
from pipeline.images.decode import Resize
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.shard import write_shards
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.train import train
from shards.caption_table import CaptionTable, table_from_records
from shards.digests import file_sha256
from shards.json_files import read_json, write_json
from tests.caching import cache_features

# A shell that runs tests in the background (`make test &` in a script) has them ignore Ctrl-C, and with them every command that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
SMALL = ShardConfig(resize=Resize(size=64))
TINY_MODEL = {"min_count": 1, "embedding_dim": 16, "hidden_dim": 32, "batch_size": 16}


PREPROCESSING = with_crop(random_info(64), size=64, mode="squash", filter="lanczos")


def pytest_collection_finish() -> None:
    """Let the fork server import what its processes need while the first tests run, if a test that is about to run uses it."""
    processes = sys.modules.get("tests.processes")
    if processes is not None:
        processes.start_fork_server()


@dataclass(frozen=True)
class Small:
    """A drawn dataset of 36 train and 4 val images, its shards (64 pixels, 10 a shard), features and a run."""

    source: Path
    shards: Path
    features: Path
    run: Path


def real_data() -> Path:
    """The folder of real data; without it the test is skipped, or fails where CAPSTREAM_REQUIRE_DATA is set."""
    folder = Path(os.environ.get("CAPSTREAM_DATA", "../shared/data")).resolve()
    if not (folder / "coco-cc" / "captions.json").is_file():
        message = f"the real data is not at {folder} (set CAPSTREAM_DATA)"
        if os.environ.get("CAPSTREAM_REQUIRE_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    return real_data()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    base = tmp_path_factory.mktemp("small")
    made = Small(source=base / "synth", shards=base / "shards", features=base / "features", run=base / "run")
    synthesize(made.source, images=40, seed=1)
    for split in ("train", "val"):
        shard_small(made.source, made.shards, split)
    cache_features(shards=made.shards, out=made.features, backbone="resnet18", weights="random", device="cpu")
    settings, runtime = {**TINY_MODEL, "epochs": 2}, RuntimeConfig(device="cpu")
    train(out=made.run, data=DataConfig(features=made.features), settings=settings, runtime=runtime)
    return made


def diverged(run: Path, to: Path) -> Path:
    """Copy a run, and set all weights of its newest checkpoint, which stays intact, to NaN; return that checkpoint."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("val.*"))  # scores, where another test has evaluated it
    checkpoint = max((to / "checkpoints").iterdir())
    weights = load_file(checkpoint / "model.safetensors")
    for tensor in weights.values():
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
    (checkpoint / "model.safetensors").write_bytes(save(weights))
    state = read_json(checkpoint / "state.json", what="checkpoint")
    state["sha256"]["model.safetensors"] = file_sha256(checkpoint / "model.safetensors")
    write_json(checkpoint / "state.json", state)
    return checkpoint


def table_with(counts: list[list[int]]) -> CaptionTable:
    """Shards of images with so many captions each."""
    number = iter(range(100_000))
    return table_from_records(
        [
            (str(next(number)), {"image_id": 1, "file_name": "x", "captions": [{"id": next(number), "text": "a", "tokens": ["a"]} for _ in range(n)]})
            for n in shard
        ]
        for shard in counts
    )


def shard_small(source: Path, out: Path, split: str, *, workers: int = 1, shard_size: int = 10) -> None:
    captions = source / f"captions_{split}.json"
    write_shards(images=source / "images", captions=captions, out=out, split=split, config=replace(SMALL, shard_size=shard_size), workers=workers)


@pytest.fixture
def run_cli() -> Callable[..., Result]:
    """Run a command as a user would; anything but a clean exit code is an error with its traceback."""

    def run(*args: object) -> Result:
        result = CliRunner().invoke(cli, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
