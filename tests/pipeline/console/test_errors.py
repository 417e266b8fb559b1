"""Settings in messages are printed as the options of the running command."""

import json

import click
import pytest
from click.testing import CliRunner

from cli import cli
from pipeline.console.errors import option_names, print_note, reported, with_options
from pipeline.console.settings import options_of
from shards.errors import InputError

TRAIN = cli.commands["train"]


@pytest.mark.parametrize(
    ("message", "printed"),
    [
        ("`batch_size` 1: must be at least 2.", "--batch-size 1: must be at least 2."),
        ("`from` /r: not a run. `init_from` is another name.", "--from /r: not a run. --from is another name."),
        ("`captions_per_image`, `resume`", "--captions-per-image, --resume"),
        ("`self_critical`, `cross_entropy`, `no_tie_weights`", "--self-critical, --cross-entropy, --no-tie-weights"),
        ("`config_file` and `config`", "--config and --config"),
        ("`beam`, `min_counts`, `batch-size`, `epochs 3`", "`beam`, `min_counts`, `batch-size`, `epochs 3`"),
        ("seed, batch_size, ``seed``", "seed, batch_size, ``seed``"),
        ("Make it with: python cli.py vocab --shards X --out Y", "Make it with: python cli.py vocab --shards X --out Y"),
        ("", ""),
    ],
)
def test_settings_of_the_command_become_its_options_and_all_other_words_stay(message: str, printed: str) -> None:
    assert with_options(message, TRAIN) == printed


def test_arguments_are_named_as_the_help_names_them() -> None:
    assert with_options("Choose another `out`.", cli.commands["synth"]) == "Choose another OUT."


def test_outside_a_command_a_message_stays() -> None:
    assert with_options("`batch_size` 1", None) == "`batch_size` 1"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_option_has_a_setting_by_its_own_name(name: str) -> None:
    written = option_names(cli.commands[name])
    for option in options_of(cli.commands[name]):
        for text in (*option.opts, *option.secondary_opts):
            assert written[text.removeprefix("--").replace("-", "_")] == text


def test_errors_and_notes_of_a_running_command_name_its_options() -> None:
    @click.command()
    @click.option("--batch-size", type=int)
    @reported
    def toy(batch_size: int) -> None:
        print_note("`batch_size` is small; `workers` is not an option.")
        raise InputError(f"`batch_size` {batch_size}: must be at least 2.")

    result = CliRunner().invoke(toy, ["--batch-size", "1"])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == ["--batch-size is small; `workers` is not an option.", "Error: --batch-size 1: must be at least 2."]


def test_errors_for_programs_name_options_too() -> None:
    result = CliRunner().invoke(cli, ["--log-json", "caption", "--run", "none", "a.jpg", "--beam", "0"])
    error = json.loads(result.stderr.splitlines()[-1])
    assert error["kind"] == "error"
    assert error["text"].startswith("--beam ")


@pytest.mark.parametrize(
    ("error", "printed"),
    [
        (PermissionError(13, "Permission denied", "out/x"), "Error: out/x: permission denied (Permission denied). Check its permissions"),
        (PermissionError(1, "Operation not permitted"), "Error: The system refused an operation (Operation not permitted). Check the user's"),
    ],
)
def test_a_refusal_names_the_file_if_there_is_one(error: PermissionError, printed: str) -> None:
    @click.command()
    @reported
    def refused() -> None:
        raise error

    result = CliRunner().invoke(refused)
    assert (result.exit_code, result.output[: len(printed)]) == (1, printed)
