import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.backbone.backbones import KEPT_FILE
from pipeline.execution.array_tasks import ArrayTask
from pipeline.features import disk_space
from pipeline.features.disk_space import SplitBytes, check_space, peak_bytes, split_bytes
from shards.dataset import open_split
from shards.errors import ResourceError
from shards.output import Output
from tests.caching import cache_features
from tests.conftest import Small

BACKBONE: dict[str, Any] = {"backbone": "resnet18", "weights": "random", "device": "cpu", "precision": "fp32"}


@pytest.fixture
def out(small: Small, tmp_path: Path) -> Path:
    """A folder that holds the random weights of the small dataset's cache, and nothing else."""
    shutil.copy(small.features / KEPT_FILE, tmp_path / KEPT_FILE)
    return tmp_path


def planned(small: Small, out: Path, split: str, *, views: int = 1, array_task: ArrayTask | None = None) -> SplitBytes:
    parts = Output(folder=out / f".{split}.parts")
    return split_bytes(open_split(small.shards, split), parts, views=views, shape=(1, 512), array_task=array_task)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_planned_bytes_are_about_those_of_the_file(small: Small, tmp_path: Path, split: str) -> None:
    size = (small.features / f"{split}.h5").stat().st_size
    one = planned(small, tmp_path, split)
    assert 0.95 * size < one.joined < 1.3 * size
    images = open_split(small.shards, split).images
    assert planned(small, tmp_path, split, views=10).joined - one.joined == 9 * images * 512 * 2  # features are counted exactly


def test_splits_are_made_one_after_another_and_their_parts_removed() -> None:
    train = SplitBytes(split="train", parts=100, present=0, joined=100)
    assert peak_bytes([]) == 0
    assert peak_bytes([train]) == 200
    assert peak_bytes([train, SplitBytes(split="val", parts=40, present=0, joined=40)]) == 200
    assert peak_bytes([train, SplitBytes(split="val", parts=90, present=0, joined=90)]) == 280
    assert peak_bytes([SplitBytes(split=name, parts=30, present=0, joined=0) for name in ("train", "val")]) == 60  # an array task keeps them


def test_caching_that_does_not_fit_is_refused_before_anything_is_computed(small: Small, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"shards": small.shards, "out": out, "views": "flip", **BACKBONE}
    needed = peak_bytes([planned(small, out, "val", views=2)])
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: needed - 1)  # a value that no real disk has
    said: list[str] = []
    with pytest.raises(ResourceError, match=r"not enough space: about [\d.]+ MB of .*\(val [\d.]+ MB\).*are free\. .*fewer `views`"):
        cache_features(splits=["val"], report=said.append, **options)
    assert not [path for path in out.rglob("*") if path.suffix in (".h5", ".tar")]
    assert said == []
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: needed)
    cache_features(splits=["val"], report=said.append, **options)
    assert said[0].startswith(f"{out}: will write about ")
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 0)
    assert [each.kept for each in cache_features(splits=["val"], **options)] == [True]
    with pytest.raises(ResourceError, match=r"\(train [\d.]+ MB\)"):  # what is kept does not count
        cache_features(**options)


def test_finished_parts_count_as_written(small: Small, out: Path) -> None:
    before, shards = planned(small, out, "train"), len(open_split(small.shards, "train").shards)
    first, second = ArrayTask(task_id=0, num_tasks=shards), ArrayTask(task_id=1, num_tasks=shards)
    assert before.present == 0
    assert planned(small, out, "train", array_task=first).joined == 0
    cache_features(shards=small.shards, out=out, splits=["train"], array_task=first, **BACKBONE)
    after = planned(small, out, "train")
    assert after.present == (out / ".train.parts/000000.h5").stat().st_size
    assert after.parts == before.parts - planned(small, out / "none", "train", array_task=first).parts
    assert after.joined == before.joined
    assert planned(small, out, "train", array_task=first).parts == 0
    assert planned(small, out, "train", array_task=second).parts > 0
    # a part with fewer views is made again
    assert planned(small, out, "train", views=10).parts == planned(small, out / "none", "train", views=10).parts


def test_in_s3_the_bytes_are_only_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 0)
    said: list[str] = []
    train = SplitBytes(split="train", parts=4_000_000_000, present=0, joined=3_400_000_000)
    check_space(Output(folder=tmp_path, url="s3://bucket/features"), [train], said.append)
    assert said == ["s3://bucket/features: will write about 3.40 GB of features and captions (train 3.40 GB)."]
