"""Options from the environment and from a TOML file, as a user gives them."""

import importlib
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from cli import cli
from pipeline.console.options import location
from pipeline.console.settings import options_of, variable, written_name
from tests import ROOT

Run = Callable[..., Result]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that some commands were called with."""
    calls: dict[str, Any] = {}
    for name in ("train", "cache-features", "shard", "import-features", "caption"):
        monkeypatch.setattr(cli.commands[name], "callback", lambda **given: calls.update(given))
    return calls


def test_every_option_has_a_variable_by_the_name_that_is_typed_and_no_two_share_one() -> None:
    names = [str(option.envvar) for command in cli.commands.values() for option in options_of(command)]
    names += [str(option.envvar) for option in options_of(cli) if option.envvar]
    assert len(set(names)) == len(names)
    assert {"CAPSTREAM_TRAIN_BATCH_SIZE", "CAPSTREAM_SHARD_RESIZE", "CAPSTREAM_TRAIN_FROM", "CAPSTREAM_CAPTION_RUN"} < set(names)
    assert {"CAPSTREAM_CONFIG", "CAPSTREAM_QUIET", "CAPSTREAM_LOG_JSON"} < set(names)
    assert not {"CAPSTREAM_DATA", "CAPSTREAM_REQUIRE_DATA"} & set(names)  # the tests' own
    assert not [command for command in cli.commands for other in ("DATA", "REQUIRE_DATA") if f"CAPSTREAM_{other}".startswith(variable(command, ""))]


@pytest.mark.parametrize(
    ("command", "environment", "wanted"),
    [
        ("train", {"CAPSTREAM_TRAIN_BATCH_SIZE": "64", "CAPSTREAM_TRAIN_FROM": "runs/a"}, {"batch_size": 64, "init_from": Path("runs/a")}),
        ("train", {"CAPSTREAM_TRAIN_SELF_CRITICAL": "true", "CAPSTREAM_TRAIN_RESUME": "1"}, {"self_critical": True, "resume": True}),
        ("train", {"CAPSTREAM_TRAIN_TIE_WEIGHTS": "no"}, {"tie_weights": False}),
        ("cache-features", {"CAPSTREAM_CACHE_FEATURES_SPLIT": "train val", "CAPSTREAM_CACHE_FEATURES_SHARDS": "x"}, {"splits": ("train", "val")}),
        ("train", {"CAPSTREAM_DATA": "elsewhere", "CAPSTREAM_REQUIRE_DATA": "1"}, {"batch_size": None}),
    ],
)
def test_options_come_from_the_environment(
    seen: dict[str, Any], run_cli: Run, monkeypatch: pytest.MonkeyPatch, command: str, environment: dict[str, str], wanted: dict[str, Any]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = run_cli(command, "--out", "o")
    assert result.exit_code == 0, result.output
    assert {name: seen[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "typed", "option", "paths"),
    [
        ("CAPSTREAM_CAPTION_RUN", ("caption", "a.jpg"), "runs", ("runs/a", "runs/b")),
        ("CAPSTREAM_CAPTION_RUN", ("caption", "a.jpg"), "runs", ("my runs/a",)),
        ("CAPSTREAM_SHARD_CAPTIONS", ("shard", "--images", "i", "--out", "o"), "captions", ("train.json", "my val.json")),
        ("CAPSTREAM_SHARD_CAPTIONS", ("shard", "--out", "o"), "captions", ("hf://datasets/a/b", "my val.json")),
    ],
)
def test_several_paths_in_one_variable_are_separated_as_in_path_so_that_they_may_contain_spaces(
    seen: dict[str, Any], run_cli: Run, monkeypatch: pytest.MonkeyPatch, name: str, typed: tuple[str, ...], option: str, paths: tuple[str, ...]
) -> None:
    monkeypatch.setenv(name, os.pathsep.join(paths))
    result = run_cli(*typed)
    assert result.exit_code == 0, result.output
    assert seen[option] == tuple(map(location, paths))


def test_the_command_line_overrides_the_environment_which_overrides_the_file_which_overrides_defaults(
    seen: dict[str, Any], run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text("[train]\nepochs = 1\nbatch-size = 1\nlayers = 1\nlr = 1\n[shard]\nresize = 'pad'\n")
    monkeypatch.setenv("CAPSTREAM_TRAIN_EPOCHS", "2")
    monkeypatch.setenv("CAPSTREAM_TRAIN_BATCH_SIZE", "2")
    assert run_cli("--config", tmp_path / "c.toml", "train", "--out", "o", "--epochs", 3).exit_code == 0
    assert [seen[name] for name in ("epochs", "batch_size", "layers", "lr", "seed")] == [3, 2, 1, 1.0, None]
    assert run_cli("train", "--out", "o").exit_code == 0  # without the file
    assert [seen[name] for name in ("epochs", "layers")] == [2, None]


def test_the_environment_may_name_the_file_and_the_file_may_set_required_options(
    seen: dict[str, Any], run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(
        '[cache-features]\nshards = "data/shards"\nout = "f"\nsplit = ["train", "val"]\n[train]\nout = "r"\nresume = true\nself-critical = true\n'
    )
    monkeypatch.setenv("CAPSTREAM_CONFIG", str(tmp_path / "c.toml"))
    assert run_cli("cache-features").exit_code == 0
    assert (seen["shards"], seen["out"], seen["splits"]) == (Path("data/shards"), Path("f"), ("train", "val"))
    assert run_cli("train").exit_code == 0
    assert (seen["out"], seen["resume"], seen["self_critical"]) == (Path("r"), True, True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[trian]\n", "[trian]: there is no such command. Did you mean train?"),
        ("batch-size = 3\n", "batch-size = 3 is not in a table. Put it below the name of a command, such as [train].\n"),
        ("train = 3\n", "train = 3 is not in a table. Put it below the name of a command, such as [train]. Did you mean [train]?\n"),
        ("[[train]]\nlr = 1\n", "train = [{'lr': 1}] is not in a table."),
        ("[train]\nbatchsize = 3\n", "[train] batchsize: train has no such option. Did you mean batch-size?"),
        ("[caption]\nimages = ['a']\n", "[caption] images: caption has no such option."),
        ("[train]\nbatch-size = 'many'\n", "[train] batch-size: 'many' is not a valid integer."),
        ("[train]\nbatch-size = 1.5\n", "[train] batch-size: '1.5' is not a valid integer."),
        ("[train]\nbatch-size = true\n", "[train] batch-size is True: it must be a string or a number."),
        ("[train]\nbatch-size = [1]\n", "[train] batch-size is [1]: it must be a string or a number."),
        ("[train]\nschedule = 'linear'\n", "[train] schedule: 'linear' is not one of 'constant', 'step', 'cosine'."),
        ("[train]\nresume = 'yes'\n", "[train] resume is 'yes': it must be true or false."),
        ("[evaluate]\nrun = [true]\n", "[evaluate] run is [True]: it must be a string or a number, or a list of them."),
        ("[train\n", "cannot be read as a TOML file"),
    ],
)
def test_a_mistake_in_the_file_is_named_whatever_command_runs(run_cli: Run, tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "c.toml").write_text(content)
    result = run_cli("--config", tmp_path / "c.toml", "backbones", "resnet152")
    assert result.exit_code == 2
    assert f"Error: --config {tmp_path / 'c.toml'}: {says}" in result.output


def test_a_missing_file_is_an_error(run_cli: Run, tmp_path: Path) -> None:
    result = run_cli("--config", tmp_path / "c.toml", "backbones")
    assert (result.exit_code, "No such file" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("CAPSTREAM_TRAIN_BATCHSIZE", "3", "Environment variable CAPSTREAM_TRAIN_BATCHSIZE: train has no such option. Did you mean"),
        (
            "CAPSTREAM_TRAIN_BATCH_SIZE",
            "many",
            "'many' is not a valid integer. (From the environment variable CAPSTREAM_TRAIN_BATCH_SIZE.)",
        ),
    ],
)
def test_a_mistake_in_the_environment_is_named(run_cli: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    monkeypatch.setenv(name, value)
    result = run_cli("train", "--out", "o")
    assert result.exit_code == 2
    assert says in result.output
    assert run_cli("shard", "--help").exit_code == 0  # other commands are not affected


def test_options_without_effect_are_rejected_only_if_they_were_typed(run_cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    captions = ["evaluate", "--captions", tmp_path / "none.json", "--references", tmp_path / "none.json"]
    assert "Omit --split." in run_cli(*captions, "--split", "val").output
    monkeypatch.setenv("CAPSTREAM_EVALUATE_SPLIT", "val")
    result = run_cli(*captions)
    assert (result.exit_code, "no such file" in result.output) == (1, True)


def test_the_config_of_train_is_a_recipe_and_options_from_the_outer_file_override_it(seen: dict[str, Any], run_cli: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("batch-size = 8\nlayers = 2\n")
    (tmp_path / "c.toml").write_text(f"[train]\nconfig = '{tmp_path / 'recipe.toml'}'\nbatch-size = 16\n")
    assert run_cli("--config", tmp_path / "c.toml", "train", "--out", "o").exit_code == 0
    assert (seen["config_file"], seen["batch_size"], seen["layers"]) == (tmp_path / "recipe.toml", 16, None)
    from pipeline.runs.recipes import chosen_settings

    assert chosen_settings({"batch_size": seen["batch_size"]}, config=seen["config_file"]) == {"batch_size": 16, "layers": 2}


@pytest.mark.parametrize(
    ("typed", "right"),
    [(("train", "--quiet"), "python cli.py --quiet train ..."), (("stats", "x", "--config", "c.toml"), "python cli.py --config PATH stats ...")],
)
def test_an_option_of_the_group_after_the_command_is_explained(run_cli: Run, typed: tuple[str, ...], right: str) -> None:
    result = run_cli(*typed)
    assert (result.exit_code, f"It must come before the command: {right}" in result.output) == (2, True)


def test_written_names_are_those_of_the_help() -> None:
    assert [written_name(option) for option in options_of(cli.commands["vocab"])] == [
        "shards",
        "shard-cache",
        "shard-cache-gb",
        "split",
        "min-count",
        "out",
    ]


def test_the_installed_program_is_this_command_line() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["capstream"].partition(":")
    assert getattr(importlib.import_module(module), name) is cli


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("capstream cap", {"caption"}),
        ("capstream train --schedule c", {"constant", "cosine"}),
        ("capstream train --batch-s", {"--batch-size"}),
        ("capstream download coco", {"coco2014", "coco2017"}),
        ("capstream --q", {"--quiet"}),
    ],
)
def test_a_real_bash_completes_the_installed_program(tmp_path: Path, typed: str, wanted: set[str]) -> None:
    program = tmp_path / "capstream"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c \'from cli import cli; cli(prog_name="capstream")\' "$@"\n')
    program.chmod(0o755)
    words = typed.split()
    script = (
        'eval "$(_CAPSTREAM_COMPLETE=bash_source capstream)"\n'
        f"COMP_WORDS=({typed}) COMP_CWORD={len(words) - 1}\n_capstream_completion capstream\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "CAPSTREAM_TRAIN_NONSENSE": "1"}
    done = subprocess.run(["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == wanted, done.stderr


def test_help_does_not_list_environment_variables() -> None:
    context = click.Context(cli.commands["train"], info_name="train")
    assert "CAPSTREAM_" not in cli.commands["train"].get_help(context)
