"""Where an option's value comes from when it is not typed: the environment, or a TOML file. By click's own ways, under one name everywhere.

``--batch-size`` of ``train`` is ``CAPSTREAM_TRAIN_BATCH_SIZE`` and, in the table ``[train]`` of the file, ``batch-size``. The command line goes
over the environment, that over the file, the file over defaults. What belongs to no option is refused by name: a misspelt setting that is
passed over in silence costs a night.
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
    """A command whose options come from the environment too, each under the name by which it is typed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for option in options_of(self):
            option.envvar = variable(self.name or "", written_name(option))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # the shell, which completes a word
            check_environment(self, os.environ)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            group = ctx.parent.command if ctx.parent is not None else self
            option = next((option for option in options_of(group) if error.option_name in option.opts), None)
            if option is None:
                raise
            typed = error.option_name if option.is_flag else f"{error.option_name} {option.make_metavar(ctx)}"
            where = f"{error.message} It stands before the command: python cli.py {typed} {self.name} ..."
            raise click.NoSuchOption(error.option_name, where, ctx=ctx) from None
        except click.BadParameter as error:
            wrong = error.param
            if isinstance(wrong, click.Option) and wrong.name and ctx.get_parameter_source(wrong.name) is ParameterSource.ENVIRONMENT:
                raise click.BadParameter(f"{error.message} (It comes from the environment: {wrong.envvar}.)", ctx, wrong) from None
            raise


def options_of(command: click.Command) -> list[click.Option]:
    """Its options, without the arguments."""
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


def written_name(option: click.Option) -> str:
    """An option as it is typed, without the dashes before: ``resize``, though its value is called otherwise in the code."""
    return next(name for name in option.opts if name.startswith("--"))[2:]


def variable(command: str, option: str) -> str:
    """The environment variable of a command's option.

    >>> variable("cache-features", "batch-size")
    'CAPSTREAM_CACHE_FEATURES_BATCH_SIZE'
    """
    return f"{PREFIX}_{command}_{option}".upper().replace("-", "_")


def check_environment(command: click.Command, environment: Mapping[str, str]) -> None:
    """Refuse variables that begin like a command's own and belong to none of its options.

    Raises:
        click.UsageError: Names the variable, and those that it may stand for.
    """
    known = [str(option.envvar) for option in options_of(command)]
    for name in environment:
        if name.startswith(variable(command.name or "", "")) and name not in known:
            raise click.UsageError(f"The environment has {name}, which is no option of {command.name}.{_meant(name, known)}")


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def read_defaults(path: Path, commands: Mapping[str, click.Command]) -> dict[str, dict[str, Any]]:
    """Options from a TOML file with a table for each command, as click's ``default_map`` takes them. Every value is tried.

    Raises:
        click.UsageError: No such file, no TOML, a name that no command or option has, a value that the option does not take.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.loads(file.read(MAX_BYTES).decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        example = "Options of a command stand in its table, for example: [train] and below it: batch-size = 64"
        raise click.UsageError(f"--config {path}: not a TOML file that can be read ({error}). {example}") from None
    defaults: dict[str, dict[str, Any]] = {}
    for name, table in content.items():
        if not isinstance(table, dict):
            meant = f" Did you mean [{name}]?" if name in commands else ""
            raise click.UsageError(f"--config {path}: {name} = {table!r} stands outside a table: options stand below [train], for example.{meant}")
        if name not in commands:
            raise click.UsageError(
                f"--config {path}: there is no command {name!r}, whose options could stand in a table.{_meant(name, commands)} "
                f"There are {', '.join(commands)}. (A recipe for train alone goes behind it: train --config FILE.)"
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
            raise click.UsageError(f"{place}: {command.name} has no such option.{_meant(written, options)} It has {', '.join(options)}.")
        values[str(option.name)] = _value(place, command, option, value)
    return values


def _value(place: str, command: click.Command, option: click.Option, value: Any) -> Any:
    """A value as if it had been typed, so that both ways refuse the same."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{place} is {value!r}: it must be true or false.")
        return value
    given = value if isinstance(value, list) and option.multiple else [value]
    if not all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in given):
        raise click.UsageError(f"{place} is {value!r}: it must be a text or a number{', or a list of them' if option.multiple else ''}.")
    texts = [str(one) for one in given]
    try:
        option.type_cast_value(click.Context(command), texts if option.multiple else texts[0])
    except click.BadParameter as error:
        raise click.UsageError(f"{place}: {error.message}") from None
    return texts if option.multiple else texts[0]
