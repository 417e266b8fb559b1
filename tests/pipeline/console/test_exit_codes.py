"""Exit codes of all commands: 2 for wrong usage, 1 for every other failure.

Usage is wrong where the command line alone is: an unknown, missing or impossible option or value, or options that do not go together. What depends
on files, the machine or the network is another failure.
"""

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

from cli import cli
from pipeline.console.command_table import COMMANDS
from pipeline.console.settings import options_of
from tests.conftest import Small

Run = Callable[..., Result]
SHARD = ["--images", "{s}/images", "--captions", "{s}/captions_val.json", "--out", "{d}/o"]
CACHE = ["--shards", "{sh}", "--out", "{d}/f"]
TRAIN = ["--features", "{f}", "--out", "{d}/r"]
IMPORT = ["--npy", "{d}/none.npy", "--captions", "{s}/captions_val.json", "--out", "{d}/f"]

# By command: arguments, and what the error says
WRONG_USAGE: dict[str, list[tuple[list[str], str]]] = {
    "download": [(["coco2014", "--root", "{d}", "--parts", "nonsense"], "--parts nonsense"), (["nonsense"], "'nonsense' is not one of")],
    "synth": [(["{d}/x", "--images", "3"], "--images 3"), (["{d}/x", "--seed", "-1"], "--seed -1"), (["{d}/x", "--workers", "0"], "--workers")],
    "shard": [
        ([*SHARD, "--size", "4"], "--size 4: must be between"),
        ([*SHARD, "--quality", "0"], "--quality 0"),
        ([*SHARD, "--shard-size", "0"], "--shard-size 0"),
        ([*SHARD, "--limit", "0"], "--limit 0"),
        ([*SHARD, "--max-rejects", "2"], "--max-rejects 2.0"),
        ([*SHARD, "--split", "a/b"], "--split 'a/b': a split's name"),
        ([*SHARD, "--split-list", "val"], "--split-list val: must have the form"),
        ([*SHARD, "--holdout", "val"], "--holdout val: must have the form"),
        ([*SHARD, "--column", "nonsense=x"], "--column nonsense=...: unknown role"),
        ([*SHARD, "--task-id", "0"], "--task-id and --num-tasks go together"),
        ([*SHARD, "--task-id", "3", "--num-tasks", "2"], "--task-id 3: must be between 0 and 1"),
        ([*SHARD, "--ray-address", "x:1"], "--ray-address requires --executor ray"),
        ([*SHARD[:-1], "gopher://host/x"], "--out gopher://host/x"),
    ],
    "index": [(["{d}", "--resize", "squash", "--size", "4"], "--size 4"), (["{d}", "--resize", "squash", "--split", "a-b"], "--split 'a-b'")],
    "verify": [([], "Missing argument"), (["{sh}", "--workers", "0"], "--workers")],
    "stats": [(["{sh}", "--plot", "x.txt"], "--plot x.txt: a figure is written as"), (["{sh}", "--shard-cache-gb", "0"], "--shard-cache-gb")],
    "vocab": [(["--shards", "{sh}", "--out", "{d}/v.json", "--min-count", "0"], "--min-count 0")],
    "backbones": [(["a", "b"], "unexpected extra argument")],
    "cache-features": [
        ([*CACHE, "--backbone", "vgg99"], "--backbone vgg99: torchvision has no classification network of this name. Did you mean vgg"),
        ([*CACHE, "--views", "nonsense"], "--views nonsense"),
        ([*CACHE, "--batch-size", "0"], "--batch-size 0"),
        ([*CACHE, "--precision", "int1"], "--precision"),
        ([*CACHE, "--num-tasks", "2"], "--task-id and --num-tasks go together"),
    ],
    "import-features": [
        ([*IMPORT, "--backbone", "resnet18"], "--backbone was given without --weights"),
        ([*IMPORT, "--weights", "x.pth"], "--weights was given without --backbone"),
        ([*IMPORT, "--size", "256"], "--size, --resize and --filter describe"),
        ([*IMPORT, "--backbone", "resnet18", "--weights", "random"], "--weights random"),
        ([*IMPORT, "--split", "a/b"], "--split 'a/b'"),
    ],
    "train": [
        ([*TRAIN, "--shards", "{sh}"], "--features and --shards were both given. Omit one"),
        (["--out", "{d}/r"], "give --features (a folder of cached features) or --shards"),
        ([*TRAIN, "--backbone", "resnet18"], "--backbone and --weights need --shards"),
        ([*TRAIN, "--batch-size", "1"], "--batch-size 1"),
        ([*TRAIN, "--lr", "-1"], "--lr -1"),
        ([*TRAIN, "--decoder", "nonsense"], "--decoder"),
        ([*TRAIN, "--recipe", "storng"], "--recipe storng: unknown. Did you mean strong?"),
        ([*TRAIN, "--config", "{d}/none.toml"], "cannot be read as a TOML file"),
        ([*TRAIN, "--config", "{d}/wrong.toml"], "unknown setting 'batchsize'. Did you mean batch-size?"),
    ],
    "curves": [(["{r}", "--out", "x.txt"], "--out x.txt: a figure is written as")],
    "caption": [
        (["--run", "{r}", "x.jpg", "--beam", "0"], "--beam"),
        (["--run", "{r}", "x.jpg", "--diversity", "1"], "--diversity requires --groups"),
        (["--run", "{r}", "x.jpg", "--best", "3"], "--best 3"),
        (["--run", "{r}", "x.jpg", "--out", "x.png"], "--out requires --show"),
        (["--run", "{r}", "x.jpg", "--show", "--out", "x.txt"], "--out x.txt"),
        (["--run", "{r}", "x.jpg", "--show", "--out", "x.jpg"], "this is one of the images to caption"),
    ],
    "evaluate": [
        ([], "Give --run, or give --captions with --references"),
        (["--run", "{r}", "--features", "{f}", "--shards", "{sh}"], "--features and --shards were both given. Omit one"),
        (["--run", "{r}", "--batch-size", "0"], "--batch-size 0"),
        (["--run", "{r}", "--split", "a/b"], "--split 'a/b'"),
        (["--run", "{r}", "--run", "{d}"], "give --out, a file for them"),
        (["--run", "{r}", "--out", "{d}/x.json", "--results", "{d}/x.json"], "--out and --results are both"),
        (["--captions", "x"], "--captions and --references must be given together"),
        (["--run", "{r}", "--captions", "x", "--references", "y"], "Omit --run"),
        (["--run", "{r}", "--column", "image=x"], "--column requires --references"),
    ],
    "report": [
        (["{r}", "--out", "x.pdf"], "--out x.pdf: a report is an HTML page"),
        (["{r}", "--out", "x.html", "--shards", "{sh}", "--images", "{s}"], "--shards and --images were both given. Omit one"),
        (["{r}", "{r}", "--out", "{d}/x.html"], "given twice"),
    ],
    "demo": [(["--out", "{d}/o", "--images", "3"], "--images 3")],
    "doctor": [(["extra"], "unexpected extra argument")],
}
OTHER_FAILURES: dict[str, list[tuple[list[str], str]]] = {
    "download": [(["coco2014", "--root", "{d}/wrong.toml"], "Choose another")],
    "synth": [(["{d}/wrong.toml", "--images", "10"], "wrong.toml")],
    "shard": [
        ([*SHARD[:-1], "{s}"], "holds something other than shards"),
        (["--images", "{d}/none", *SHARD[2:]], "no such folder"),
        ([*SHARD[:2], "--captions", "{d}/splits.json", "--out", "{d}/o"], "images[0].split is 'a b'"),
        ([*SHARD, "--split-list", "val={d}/none"], "no such file"),
    ],
    "index": [(["{d}", "--resize", "squash"], "has no .tar file")],
    "verify": [(["{d}/none"], "no such file or folder")],
    "stats": [(["{s}"], "not a shard dataset")],
    "vocab": [(["--shards", "{sh}", "--out", "{d}/v.json", "--min-count", "9999"], "Choose a smaller --min-count")],
    "backbones": [(["resnt"], "Did you mean resnet")],
    "cache-features": [
        ([*CACHE, "--weights", "{d}/none.pth"], "neither a file nor published weights"),
        ([*CACHE, "--split", "nonsense"], "nonsense"),
    ],
    "import-features": [(IMPORT, "no such file or folder")],
    "train": [(["--features", "{s}", "--out", "{d}/r"], "holds no feature files"), ([*TRAIN[:-1], "{f}"], "is not empty and not a run")],
    "curves": [(["{d}", "--out", "{d}/x.png"], "not a run")],
    "caption": [
        (["--run", "{d}", "x.jpg"], "not a run"),
        (["--run", "{r}", "none.jpg"], "could not be captioned"),
        (["--run", "{r}", "{d}"], "no images"),
    ],
    "evaluate": [(["--run", "{d}"], "not a run"), (["--run", "{r}", "--split", "test", "--out", "{d}/s.json"], "there is no split 'test'")],
    "report": [(["{r}", "--split", "test", "--out", "{d}/x.html"], "has no scores of the split 'test'")],
    "demo": [(["--out", "{d}/wrong.toml"], "is a file")],
    "doctor": [],  # reports what it finds, with exit code 0
}


def test_every_command_is_here() -> None:
    assert list(WRONG_USAGE) == list(OTHER_FAILURES) == list(COMMANDS)


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize(("code", "cases"), [(2, WRONG_USAGE), (1, OTHER_FAILURES)], ids=["wrong usage", "another failure"])
def test_the_exit_code_tells_wrong_usage_from_other_failures(
    run_cli: Run, small: Small, tmp_path: Path, command: str, code: int, cases: dict[str, list[tuple[list[str], str]]]
) -> None:
    (tmp_path / "wrong.toml").write_text("batchsize = 3\n")
    image = {"filename": "a.jpg", "imgid": 0, "split": "a b", "sentences": [{"raw": "A"}]}
    (tmp_path / "splits.json").write_text(json.dumps({"images": [image]}))
    places = {"d": tmp_path, "s": small.source, "sh": small.shards, "f": small.features, "r": small.run}
    for arguments, says in cases[command]:
        result = run_cli(command, *(argument.format(**places) for argument in arguments))
        assert result.exit_code == code, (arguments, result.output)
        assert says in result.output, (arguments, result.output)
        assert result.output.splitlines()[-1].startswith("Error: "), (arguments, result.output)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_unknown_options_and_values_of_a_wrong_type_are_wrong_usage_everywhere(run_cli: Run, command: str) -> None:
    assert run_cli(command, "--nonsense").exit_code == 2
    for option in options_of(cli.commands[command]):
        if isinstance(option.type, click.Choice) or option.type.name in {"integer", "float", "integer range", "float range"}:
            assert run_cli(command, option.opts[0], "nonsense").exit_code == 2


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("cache-feature", "cache-features"), ("xyz", None)])
def test_an_unknown_command_is_wrong_usage_and_the_nearest_is_named(run_cli: Run, typed: str, meant: str | None) -> None:
    result = run_cli(typed)
    assert result.exit_code == 2
    assert f"No such command '{typed}'." in result.output
    assert (f"Did you mean {meant}?" in result.output) == (meant is not None)
