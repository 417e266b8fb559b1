"""The commands as a user types them: next steps, exit codes and one-paragraph errors."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

from cli import cli
from model.limits import FILTERS, RESIZE_MODES
from pipeline.console.settings import options_of
from pipeline.demo import IMAGES
from pipeline.sharding.config import ShardConfig
from tests.conftest import Small

Run = Callable[..., Result]


def test_every_command_ends_by_suggesting_the_next_one_with_paths_that_a_shell_can_read(run_cli: Run, tmp_path: Path) -> None:
    d = tmp_path / "my photos"
    steps = [
        ["synth", d / "s", "--images", 20, "--workers", 1],
        ["shard", "--images", d / "s/images", "--captions", d / "s/captions_train.json", "--out", d / "sh", "--size", 64, "--workers", 1],
        [
            "shard",
            "--images",
            d / "s/images",
            "--captions",
            d / "s/captions_val.json",
            "--out",
            d / "sh",
            "--size",
            64,
            "--split",
            "val",
            "--workers",
            1,
        ],
        ["vocab", "--shards", d / "sh", "--min-count", 1, "--out", d / "v.json"],
        ["cache-features", "--shards", d / "sh", "--out", d / "f", "--backbone", "squeezenet1_1", "--weights", "random"],
        ["train", "--features", d / "f", "--out", d / "r", "--vocab", d / "v.json", "--epochs", 1, "--hidden-dim", 16],
        ["train", "--out", d / "r", "--resume", "--epochs", 2],
        ["evaluate", "--run", d / "r", "--features", d / "f", "--out", d / "scores.json", "--no-java"],
        ["caption", "--run", d / "r", d / "s/images/scene_000000.jpg"],
    ]
    for step in steps:
        result = run_cli(*step)
        assert result.exit_code == 0, result.output
        assert "Next: " in result.output.splitlines()[-1]
        assert "python cli.py" in result.output.splitlines()[-1]
        assert not any(word.endswith("/my") for word in shlex.split(result.output.splitlines()[-1])), "a path with a space must be quoted"
    assert json.loads((d / "scores.json").read_text())["scores"].keys() >= {"bleu_4", "cider"}
    result = run_cli("caption", "--run", d / "r", d / "s/images/scene_000001.jpg", "--show", "--out", d / "x.png")
    assert result.exit_code == 0
    assert (d / "x.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["shard", "--images", "{d}/no", "--captions", "{s}/captions_train.json", "--out", "{d}/o"], "no such folder"),
        (["shard", "--images", "{s}/images", "--captions", "{d}/no.json", "--out", "{d}/o"], "no such file"),
        (["shard", "--images", "{s}/images", "--captions", "{s}/images/scene_000000.jpg", "--out", "{d}/o"], "not a known caption"),
        (["shard", "--images", "{s}/images", "--captions", "{s}/captions_train.json", "--out", "{s}"], "holds something other than shards"),
        (["backbones", "resnet1520"], "no classification network"),
        (["verify", "{d}/none"], "none: no such file or folder. Give the folder of a shard dataset, a feature file"),
        (["verify", "{d}/none.h5"], "damaged"),
        (["verify", "{s}/captions_train.json"], "captions_train.json: not a feature file (its name does not end in .h5). Give the folder"),
        (["verify", "{d}"], "not a shard dataset"),
        (["stats", "{d}/none"], "none: no such file or folder. Give the folder of a shard dataset, a feature file"),
        (["stats", "{s}/captions_train.json"], "captions_train.json: not a feature file (its name does not end in .h5). Give the folder"),
        (["vocab", "--shards", "{d}", "--out", "{d}/v.json"], "not a shard dataset"),
        (["vocab", "--shards", "{sh}", "--min-count", "9999", "--out", "{d}/v.json"], "smaller --min-count"),
        (["cache-features", "--shards", "{sh}", "--out", "{d}/f", "--device", "tpu"], "--device tpu"),
        (["cache-features", "--shards", "{sh}", "--out", "{d}/f", "--backbone", "alexnet", "--weights", "random"], "cannot take images of 56 pixels"),
        (["train", "--features", "{d}/none", "--out", "{d}/r"], "none: no such folder. Make the feature files with"),
        (["train", "--features", "{f}", "--out", "{d}/r", "--vocab", "{s}/captions_train.json"], "format version None"),
        (["evaluate", "--run", "{d}", "--features", "{f}", "--out", "{d}/s.json"], "not a run"),
        (["caption", "--run", "{r}", "{d}/nothing.jpg"], "could not be captioned"),
        (["caption", "--run", "{r}", "{s}/captions_val.json"], "not an image"),
        (["caption", "--run", "{r}", "{x}"], "could not be captioned"),
        (["evaluate", "--run", "{r}", "--features", "{f}", "--out", "{d}/{x}"], "not a usable file name"),
        (["report", "{d}/{x}", "--out", "{d}/p.html"], "not a usable file name"),
        (["curves", "{d}/{x}", "--out", "{d}/p.png"], "not a usable file name"),
    ],
)
def test_a_mistake_is_one_paragraph_and_exit_code_1(run_cli: Run, small: Small, tmp_path: Path, arguments: list[str], says: str) -> None:
    places = {"d": tmp_path, "s": small.source, "sh": small.shards, "f": small.features, "r": small.run, "x": "x" * 300}
    result = run_cli(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == 1, result.output
    assert says in result.output
    assert "Traceback" not in result.output
    assert result.output.splitlines()[-1].startswith("Error: ")


def test_the_help_of_demo_says_how_many_images_it_has_by_default() -> None:
    options = {option.name: option for option in options_of(cli.commands["demo"])}
    assert options["images"].show_default == str(IMAGES)


def test_choices_and_defaults_of_shard_are_those_of_its_config() -> None:
    options = {option.name: option for option in cli.commands["shard"].params}
    config = ShardConfig()
    assert isinstance(options["mode"].type, click.Choice)
    assert isinstance(options["filter_"].type, click.Choice)
    assert (tuple(options["mode"].type.choices), tuple(options["filter_"].type.choices)) == (RESIZE_MODES, FILTERS)
    defaults = [options[name].default for name in ("size", "mode", "filter_", "quality")]
    assert defaults == [config.resize.size, config.resize.mode, config.resize.filter, config.quality]
