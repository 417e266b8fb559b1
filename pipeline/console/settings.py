"""Options from the environment and from a TOML file.

``--batch-size`` of ``train`` is ``CAPSTREAM_TRAIN_BATCH_SIZE`` in the environment and ``batch-size`` in the table ``[train]`` of the file. The
command line overrides the environment, the environment overrides the file, and the file overrides the defaults. A name that belongs to no option
is an error: a misspelled setting that is silently ignored can cost a night of training.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

PREFIX = "CAPSTREAM"
MAX_BYTES = 1 << 20


class SettableCommand(click.Command):
    """A command whose options can also be set in the environment, under the names that are typed on the command line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for option in options_of(self):
            option.envvar = variable(self.name or "", written_name(option))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # resilient parsing: the shell completes a word
            check_environment(self, os.environ)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            group = ctx.parent.command if ctx.parent is not None else self
            option = next((option for option in options_of(group) if error.option_name in option.opts), None)
            if option is None:
                raise
            typed = error.option_name if option.is_flag else f"{error.option_name} {option.make_metavar(ctx)}"
            where = f"{error.message} It must come before the command: python cli.py {typed} {self.name} ..."
            raise click.NoSuchOption(error.option_name, where, ctx=ctx) from None
        except click.BadParameter as error:
            wrong = error.param
            if isinstance(wrong, click.Option) and wrong.name and ctx.get_parameter_source(wrong.name) is ParameterSource.ENVIRONMENT:
                raise click.BadParameter(f"{error.message} (From the environment variable {wrong.envvar}.)", ctx, wrong) from None
            raise


def options_of(command: click.Command) -> list[click.Option]:
    """The options of a command, without its arguments."""
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def written_name(option: click.Option) -> str:
    """The name of an option as it is typed, without the leading dashes. Its parameter in the code may have another name."""
    return next(name for name in option.opts if name.startswith("--"))[2:]


def variable(command: str, option: str) -> str:
    """The environment variable of a command's option.

    >>> variable("cache-features", "batch-size")
    'CAPSTREAM_CACHE_FEATURES_BATCH_SIZE'
    """
    return f"{PREFIX}_{command}_{option}".upper().replace("-", "_")


def check_environment(command: click.Command, environment: Mapping[str, str]) -> None:
    """Reject environment variables that begin like those of a command but belong to none of its options.

    Raises:
        click.UsageError: There is such a variable.
    """
    known = [str(option.envvar) for option in options_of(command)]
    for name in environment:
        if name.startswith(variable(command.name or "", "")) and name not in known:
            raise click.UsageError(f"Environment variable {name}: {command.name} has no such option.{_meant(name, known)}")


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def read_defaults(path: Path, commands: Mapping[str, click.Command]) -> dict[str, dict[str, Any]]:
    """Read a TOML file with a table of options for each command. All values are checked, whichever command runs.

    Args:
        path: The file.
        commands: All commands by name. Only those that the file names are looked up, and so imported.

    Returns:
        The values in the form of click's ``default_map``: command -> parameter -> value.

    Raises:
        click.UsageError: The file is missing or not TOML, a command or option does not exist, or a value is invalid.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.loads(file.read(MAX_BYTES).decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        example = "Put the options of a command into its table, for example [train], then batch-size = 64."
        raise click.UsageError(f"--config {path}: cannot be read as a TOML file ({error}). {example}") from None
    defaults: dict[str, dict[str, Any]] = {}
    for name, table in content.items():
        if not isinstance(table, dict):
            meant = f" Did you mean [{name}]?" if name in commands else ""
            raise click.UsageError(
                f"--config {path}: {name} = {table!r} is not in a table. Put it below the name of a command, such as [train].{meant}"
            )
        if name not in commands:
            raise click.UsageError(
                f"--config {path}: [{name}]: there is no such command.{_meant(name, commands)} The commands are {', '.join(commands)}. "
                f"(To give a recipe to train, put the option after the command: train --config FILE.)"
            )
        defaults[name] = _table(path, commands[name], table)
    return defaults


def _table(path: Path, command: click.Command, table: dict[str, Any]) -> dict[str, Any]:
    options = {written_name(option): option for option in options_of(command)}
    values = {}
    for written, value in table.items():
        option = options.get(written.replace("_", "-"))
        place = f"--config {path}: [{command.name}] {written}"
        if option is None:
            raise click.UsageError(f"{place}: {command.name} has no such option.{_meant(written, options)} Its options are {', '.join(options)}.")
        values[str(option.name)] = _value(place, command, option, value)
    return values


def _value(place: str, command: click.Command, option: click.Option, value: Any) -> Any:
    """A value as if it had been typed, so that a file and the command line accept the same values."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{place} is {value!r}: it must be true or false.")
        return value
    given = value if isinstance(value, list) and option.multiple else [value]
    if not all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in given):
        raise click.UsageError(f"{place} is {value!r}: it must be a string or a number{', or a list of them' if option.multiple else ''}.")
    texts = [str(one) for one in given]
    try:
        option.type_cast_value(click.Context(command), texts if option.multiple else texts[0])
    except click.BadParameter as error:
        raise click.UsageError(f"{place}: {error.message}") from None
    return texts if option.multiple else texts[0]
