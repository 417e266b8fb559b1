"""Splits held out by a hash of the file name."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from pipeline.captions.holdout import parse_holdout
from pipeline.captions.read import CaptionSource, read_splits
from shards.dataset import open_split, read_dataset_file
from shards.errors import InputError
from shards.json_files import read_json
from shards.tar import read_records
from tests.conftest import TINY_MODEL, Small

Run = Callable[..., Result]
NAMES = [f"a/{number}.jpg" for number in range(1000)]


def table(path: Path, names: Sequence[str], splits: Sequence[str] = ()) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"] if splits else ["image", "caption"])
        writer.writerows(zip(names, ["a dog"] * len(names), splits, strict=True) if splits else ((name, "a dog") for name in names))
    return path


def assigned(path: Path, *holdout: str) -> dict[str, list[str]]:
    found = read_splits(CaptionSource(paths=(path,), holdout=parse_holdout(holdout)))
    return {split: [record.file_name for record in captions.records] for split, captions in found.items()}


def test_about_that_fraction_of_the_images_is_held_out_in_the_order_of_the_captions(tmp_path: Path) -> None:
    found = assigned(table(tmp_path / "c.csv", NAMES), "val=0.1,test=0.2")
    assert list(found) == ["train", "val", "test"]
    assert 70 < len(found["val"]) < 130
    assert 150 < len(found["test"]) < 250
    for names in found.values():
        assert names == sorted(names, key=NAMES.index)
    assert sorted(name for names in found.values() for name in names) == sorted(NAMES)
    assert found == assigned(tmp_path / "c.csv", "val=0.1", "test=0.2")


def test_an_image_keeps_its_split_when_others_come_and_go_and_in_every_order_and_format(tmp_path: Path) -> None:
    before = assigned(table(tmp_path / "c.csv", NAMES), "val=0.1")
    some = random.Random(0).sample(NAMES, 500)
    after = assigned(table(tmp_path / "d.csv", [*some, *(f"new/{name}" for name in NAMES)]), "val=0.1")
    assert {name for name in after["val"] if name in some} == {name for name in before["val"] if name in some}
    coco = {
        "images": [{"id": 10**6 - number, "file_name": name} for number, name in enumerate(NAMES)],
        "annotations": [{"id": number, "image_id": 10**6 - number, "caption": "a"} for number in range(len(NAMES))],
    }
    (tmp_path / "c.json").write_text(json.dumps(coco))
    assert assigned(tmp_path / "c.json", "val=0.1") == before
    assert set(assigned(tmp_path / "c.csv", "val=0.1,test=0.3")["val"]) == set(before["val"])
    assert set(assigned(tmp_path / "c.csv", "val=0.2")["val"]) > set(before["val"])


def test_both_unicode_forms_of_a_name_are_in_one_split(tmp_path: Path) -> None:
    composed = assigned(table(tmp_path / "c.csv", [f"caf\u00e9{number}.jpg" for number in range(100)]), "val=0.5")
    decomposed = assigned(table(tmp_path / "d.csv", [f"cafe\u0301{number}.jpg" for number in range(100)]), "val=0.5")
    assert [name.replace("\u00e9", "e\u0301") for name in composed["val"]] == decomposed["val"]


def test_images_of_the_train_split_are_held_out_where_there_is_no_other_split_of_that_name(tmp_path: Path) -> None:
    splits = ["test" if number % 2 else "train" for number in range(1000)]
    found = assigned(table(tmp_path / "c.csv", NAMES, splits), "val=0.1")
    assert found["test"] == NAMES[1::2]
    assert 25 < len(found["val"]) < 75
    assert set(found["val"]) | set(found["train"]) == set(NAMES[::2])
    with pytest.raises(InputError, match=r"c.csv: has a split test of its own \(train, test\). Omit `holdout`"):
        assigned(tmp_path / "c.csv", "test=0.1")
    with pytest.raises(InputError, match=r"has no split train to take images from, only x\. Omit `holdout`"):
        assigned(table(tmp_path / "d.csv", NAMES, ["x"] * 1000), "val=0.1")


def test_a_split_that_would_be_empty_is_an_error_before_anything_is_written(tmp_path: Path, run_cli: Run) -> None:
    result = run_cli(
        "shard", "--images", tmp_path, "--captions", table(tmp_path / "c.csv", NAMES[:3]), "--out", tmp_path / "o", "--holdout", "val=0.0001"
    )
    assert result.exit_code == 1
    assert "--holdout gives split val none of the 3 images (a hash of the file name chooses them). Choose a larger fraction." in result.output
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("holdout", "says"),
    [
        ("val", "--holdout val: must have the form SPLIT=FRACTION, such as val=0.1."),
        ("val=x", "--holdout val=x: must have the form"),
        ("val=10", "--holdout val=10: the fraction must be between 0 and 1."),
        ("val=nan", "--holdout val=nan: the fraction must be"),
        ("val=0.6,test=0.4", "leaves no images for train"),
        ("val=0.1,val=0.2", "val is named twice"),
        ("train=0.9", "train is the split that the images are taken from"),
        ("a-b=0.1", "--holdout a-b=0.1: a split's name"),
    ],
)
def test_a_wrong_holdout_is_wrong_usage(run_cli: Run, tmp_path: Path, holdout: str, says: str) -> None:
    result = run_cli("shard", "--images", tmp_path, "--captions", tmp_path / "c", "--out", tmp_path / "o", "--holdout", holdout)
    assert result.exit_code == 2
    assert says in result.output


def test_shards_of_a_holdout_are_resumed_verified_and_never_share_an_image(run_cli: Run, tmp_path: Path) -> None:
    names = [f"{number}.jpg" for number in range(40)]
    for name in names[:-1]:
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    command = ["shard", "--images", tmp_path, "--captions", table(tmp_path / "c.csv", names), "--out", tmp_path / "o", "--size", 32, "--workers", 1]
    result = run_cli(*command, "--holdout", "val=0.2")
    assert result.exit_code == 0, result.output
    assert list(read_dataset_file(tmp_path / "o").splits) == ["train", "val"]
    found = {
        split: [record["file_name"] for shard in open_split(tmp_path / "o", split).shards for _, record in read_records(shard)]
        for split in ("train", "val")
    }
    assert {split: set(files) for split, files in found.items()} == {
        split: set(files) - {"39.jpg"} for split, files in assigned(tmp_path / "c.csv", "val=0.2").items()
    }
    assert "1 missing_file" in result.output
    assert run_cli("verify", tmp_path / "o", "--deep", "--workers", 1).exit_code == 0
    assert run_cli(*command, "--holdout", "val=0.2").output.count("(all complete already, nothing written)") == 2
    assert "complete already" in run_cli(*command, "--holdout", "val=0.2", "--split", "val").output
    for other in (["--holdout", "val=0.4"], ["--holdout", "val=0.4", "--split", "val"], ["--holdout", "test=0.2", "--split", "test"], []):
        if other != ["--holdout", "test=0.2", "--split", "test"]:  # the same fraction of another name takes the same images
            result = run_cli(*command, *other)
            assert (result.exit_code, "split 'train' was made from other input" in result.output) == (1, True), result.output


def test_a_dataset_without_splits_is_trained_scored_and_reported_at_once(run_cli: Run, small: Small, tmp_path: Path) -> None:
    steps = [
        ["shard", "--images", small.source / "images", "--captions", small.source / "captions_train.json", "--out", tmp_path / "s", "--size", 64,
         "--workers", 1, "--holdout", "val=0.2"],
        ["cache-features", "--shards", tmp_path / "s", "--out", tmp_path / "f", "--backbone", "resnet18", "--weights", "random", "--device", "cpu"],
        ["train", "--features", tmp_path / "f", "--out", tmp_path / "r", "--epochs", 1, "--device", "cpu",
         *(f"--{name.replace('_', '-')}={value}" for name, value in TINY_MODEL.items())],
        ["evaluate", "--run", tmp_path / "r", "--no-java", "--device", "cpu"],
        ["report", tmp_path / "r", "--out", tmp_path / "report.html"],
    ]  # fmt: skip
    for step in steps:
        result = run_cli(*step)
        assert result.exit_code == 0, result.output
    scores = read_json(tmp_path / "r/val.scores.json", what="scores")
    assert len(scores["images"]) == read_dataset_file(tmp_path / "s").splits["val"]["images"]
