"""One shard, written by a worker."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from pipeline.images.decode import Resize
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.shard_task import ShardTask, write_shard
from shards.errors import InputError


def test_a_worker_on_a_machine_without_the_packages_of_the_language_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ShardConfig(resize=Resize(size=32), language="zh")  # refused at once, had this machine not the package
    task = ShardTask(out=tmp_path, images=None, split="train", index=0, start=0, records=(), plan_rejects=(), config=config)

    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr("pipeline.captions.languages.version", missing)
    with pytest.raises(InputError, match=r"requires jieba: pip install '\.\[zh\]'"):
        write_shard(task)
    assert not list(tmp_path.iterdir())
