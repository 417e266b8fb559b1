"""The advice of an error follows what the path leads to."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from shards.found_instead import did_you_mean, near_name
from tests.conftest import Small

Run = Callable[..., Result]


def error_of(result: Result) -> str:
    assert result.exit_code == 1, result.output
    return result.output.splitlines()[-1].removeprefix("Error: ")


@pytest.mark.parametrize(
    "command", [["verify", "{}"], ["stats", "{}"], ["cache-features", "--out", "f", "--shards", "{}"], ["vocab", "--out", "v", "--shards", "{}"]]
)
def test_a_folder_of_photographs_is_not_suggested_as_the_output_of_shard(run_cli: Run, small: Small, command: list[str]) -> None:
    images = small.source / "images"
    error = error_of(run_cli(*(word.format(images) for word in command)))
    assert error == (
        f"{images}: not a shard dataset (it has no dataset.json). It holds images. Make shards from them with: "
        f"python cli.py shard --images {images} --captions CAPTIONS --out {images}-shards"
    )


def test_the_suggested_shard_command_works(run_cli: Run, small: Small) -> None:
    error = error_of(run_cli("verify", small.source / "images"))
    words = error.split("python cli.py ")[1].replace("CAPTIONS", str(small.source / "captions_val.json")).split()
    assert run_cli(*words, "--size", 64, "--workers", 1).exit_code == 0


def test_other_data_where_shards_are_wanted_are_named(run_cli: Run, small: Small, tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/0.tar").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").touch()
    for path, says in {
        small.features: "holds feature files, not shards",
        small.run: "holds a run, not shards",
        tmp_path / "tars": f"To use tars that another program wrote: python cli.py index {tmp_path / 'tars'} --resize MODE",
        tmp_path / "empty": f"Make one with: python cli.py shard --images IMAGES --captions CAPTIONS --out {tmp_path / 'empty'}",
        tmp_path / "a file": "is a file. Give the folder of a shard dataset.",
        tmp_path / "none": "no such folder. Make a shard dataset with",
    }.items():
        assert says in error_of(run_cli("vocab", "--shards", path, "--out", tmp_path / "v.json"))


def test_other_data_where_features_are_wanted_are_named(run_cli: Run, small: Small, tmp_path: Path) -> None:
    make = f"python cli.py cache-features --shards {small.shards} --out {small.shards}-features"
    for path, says in {
        small.shards: f"holds shards, not features. Give it as --shards, or make features from it with: {make}",
        small.features / "train.h5": f"is a feature file. Give its folder: {small.features}",
        small.run: "holds a run, not features",
        small.source: "holds no feature files. Make them with",
        small.features.with_name("featurse"): f"no such folder. Did you mean {small.features}?",
    }.items():
        for command in (["train", "--out", tmp_path / "r"], ["evaluate", "--run", small.run, "--out", tmp_path / "s.json"]):
            error = error_of(run_cli(*command, "--features", path))
            assert error.startswith(f"{path}: {says}"), error


def test_a_run_that_is_misspelled_or_something_else_is_named(run_cli: Run, small: Small, tmp_path: Path) -> None:
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/config.json").touch()
    checkpoint = next((small.run / "checkpoints").iterdir())
    for path, says in {
        tmp_path / "runs/frist": f"no such run. Did you mean {tmp_path / 'runs/first'}?",
        tmp_path / "runs": f"not a run (it has no config.json), but a folder of runs. Did you mean {tmp_path / 'runs/first'}?",
        checkpoint: f"not a run (it has no config.json). Did you mean {small.run}?",
        small.shards: "holds shards, not a run. Train one with",
        small.features / "train.h5": "is a file, not a run",
    }.items():
        for command in (["caption", "x.jpg", "--run", path], ["evaluate", "--run", path], ["curves", path, "--out", tmp_path / "c.png"]):
            error = error_of(run_cli(*command))
            assert error.startswith(f"{path}: {says}"), error
    assert "Did you mean" in error_of(run_cli("report", tmp_path / "runs/frist", "--out", tmp_path / "r.html"))


def test_only_near_names_are_suggested(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    assert did_you_mean(tmp_path / "frist") == f" Did you mean {tmp_path / 'first'}?"
    assert did_you_mean(tmp_path / "other") == did_you_mean(tmp_path / "none/first") == did_you_mean(tmp_path / "first") == ""
    assert near_name("vla", ["train", "val"]) == " Did you mean val?"
    assert near_name("x", ["train", "val"]) == ""
