"""Shards on a real S3-compatible server on 127.0.0.1."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.captions.vocabulary import make_vocabulary
from shards.errors import InputError
from shards.remote import localize
from tests.conftest import TINY_MODEL, Small
from tests.servers import s3_bucket
from tests.shards.shard_server import LARGE

Run = Callable[..., Result]


@pytest.fixture
def bucket(s3: str, small: Small, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The small dataset on that server."""
    with s3_bucket(s3, monkeypatch) as (url, client):
        for path in small.shards.iterdir():
            if path.is_file():
                client.upload_file(str(path), url.removeprefix("s3://"), f"a/shards/{path.name}")
        yield f"{url}/a/shards"


def test_shards_in_s3_are_cached_and_trained_on(bucket: str, small: Small, tmp_path: Path, run_cli: Run) -> None:
    cache = ["--shard-cache", tmp_path / "cache", "--device", "cpu"]
    network = ["--backbone", "squeezenet1_1", "--weights", "random"]
    result = run_cli("cache-features", "--shards", bucket, "--out", tmp_path / "remote", *network, *cache)
    assert result.exit_code == 0, result.output
    result = run_cli("cache-features", "--shards", small.shards, "--out", tmp_path / "local", *network, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "remote/train.h5").read_bytes() == (tmp_path / "local/train.h5").read_bytes()
    model = [f"--{name.replace('_', '-')}={value}" for name, value in TINY_MODEL.items()]
    result = run_cli("train", "--shards", bucket, "--out", tmp_path / "run", "--epochs", 1, "--captions-per-image", 5, *model, *network, *cache)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run/config.json").read_text())["data"] == bucket


def test_missing_objects_are_named_by_their_url(bucket: str, tmp_path: Path) -> None:
    for url in (f"{bucket}/no", "s3://nowhere/shards"):
        with pytest.raises(InputError, match=f"{url}/dataset.json: no such file"):
            localize(url, cache=tmp_path, cache_bytes=LARGE)


def test_a_vocabulary_of_shards_in_s3_is_that_of_the_local_ones(bucket: str, small: Small, tmp_path: Path) -> None:
    folder = localize(bucket, cache=tmp_path / "cache", cache_bytes=LARGE)
    make_vocabulary(shards=folder, split="train", min_count=1, out=tmp_path / "remote.json")
    make_vocabulary(shards=small.shards, split="train", min_count=1, out=tmp_path / "local.json")
    assert (tmp_path / "remote.json").read_bytes() == (tmp_path / "local.json").read_bytes()
