"""What every command has: reported failures, options from the environment, and examples at the end of its help."""

import shlex
import sys
from collections.abc import Callable

import click

from pipeline.console.errors import reported
from pipeline.console.settings import SettableCommand

EXAMPLES = "Example:"


def command(name: str, *examples: str) -> Callable[[Callable[..., None]], click.Command]:
    r"""Make a function a command.

    Args:
        name: The command's name.
        examples: Lines of examples for its help. A line that ends in a backslash continues in the next.
    """

    def make(function: Callable[..., None]) -> click.Command:
        epilog = "\n".join(["\b", EXAMPLES, *(f"  {line}" for line in examples)])
        return click.command(name, cls=SettableCommand, epilog=epilog)(reported(function))

    return make


def typed_command() -> str:
    """The command line as the user typed it, to be recorded in files."""
    return shlex.join(["python", "cli.py", *sys.argv[1:]])
