"""Options that several commands share, and tools to group options."""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from shards.paths import Location

P = ParamSpec("P")
R = TypeVar("R")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

PATH = click.Path(path_type=Path)
RESIZE_MODE = click.Choice(["squash", "shortest", "pad", "none"])
FILTER = click.Choice(["lanczos", "bicubic", "bilinear", "box"])


def location(value: str) -> Location:
    """A local path, or a URL as it was typed: a path would lose one of its slashes."""
    return value if "://" in value else Path(value)


class Locations(click.ParamType[Location]):
    """:func:`location` for an option that may be repeated. In a variable of the environment, places are separated as in ``PATH``."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:  # noqa: ARG002 - click's signature
        return location(value) if isinstance(value, str) else value

    def split_envvar_value(self, rv: str) -> list[str]:
        return [each for each in re.split(rf"{re.escape(os.pathsep)}(?!//)", rv) if each]


def default_worker_count() -> int:
    """The default of ``--workers``."""
    from pipeline.execution.executors import default_workers

    return default_workers()


device_option = click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N. auto uses a GPU if there is one.")
workers_option = click.option(
    "--workers", type=click.IntRange(1), default=default_worker_count, show_default="number of cores", help="Number of worker processes."
)
checkpoint_option = click.option(
    "--checkpoint",
    type=click.Choice(["latest", "best", "average"]),
    default="latest",
    help="Checkpoint of the run: latest; best: highest CIDEr on val; average: mean of the weights of all kept checkpoints.",
)


def together(*options: Decorator) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Several options as one decorator, in the order of the help."""

    def add(function: Callable[P, R]) -> Callable[P, R]:
        return functools.reduce(lambda decorated, option: option(decorated), reversed(options), function)

    return add


def grouped(argument: str, make: Callable[..., Any], *options: Decorator) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Several options whose values reach the command as one argument.

    Args:
        argument: Name of the command's argument.
        make: Called with the options' values by name; returns the argument.
        options: The options, in the order of the help.
    """

    def holder() -> None:
        """A function that takes the options, so that their names are known."""

    names = [parameter.name for parameter in click.command()(together(*options)(holder)).params if parameter.name]

    def add(function: Callable[..., R]) -> Callable[..., R]:
        @functools.wraps(function)
        def call(**values: Any) -> R:
            group = {name: values.pop(name) for name in names}
            return function(**values, **{argument: make(**group)})

        return together(*options)(call)

    return add


def name_and_value(option: str, text: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE.

    Raises:
        click.UsageError: One of them is missing.
    """
    name, _, value = text.partition("=")
    if not (name and value):
        raise click.UsageError(f"{option} {text}: must have the form NAME=VALUE.")
    return name, value


def typed(*names: str) -> list[str]:
    """The options of the running command that were typed on the command line, among those with the given parameter names."""
    context = click.get_current_context()
    return [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
