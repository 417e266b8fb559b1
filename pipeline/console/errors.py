"""Errors and notes as the command line prints them.

Modules below the command line know no options. They name a setting in backticks (`` `batch_size` ``), and the command line prints the option of
the running command in its place (``--batch-size``).
"""

import contextlib
import errno
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, ParamSpec, TypeVar

import click

from pipeline.console.settings import options_of
from pipeline.execution import messages
from shards.errors import CapstreamError, ReportedElsewhereError, SettingsError

P = ParamSpec("P")
R = TypeVar("R")
# As shells report a program that SIGINT or SIGTERM ended
INTERRUPTED, TERMINATED = 130, 143
STOPPED = "Stopped. Finished work is kept. To continue, run the same command again (train: with --resume)."
SETTING = re.compile(r"(?<!`)`([A-Za-z_]\w*)`(?!`)")


def with_options(message: str, command: click.Command | None) -> str:
    """A message in which each setting in backticks is replaced by the command's option of that name.

    A setting is recognized by the name of its parameter in the code and by its option's own name. All other words in backticks are unchanged.

    >>> resize = click.Command("shard", params=[click.Option(["--resize", "mode"]), click.Option(["--shard-size"])])
    >>> with_options("`shard_size` 0: must be at least 1. `mode` and `resize` do not matter, nor does `this`.", resize)
    '--shard-size 0: must be at least 1. --resize and --resize do not matter, nor does `this`.'
    """
    written = option_names(command) if command is not None else {}
    return SETTING.sub(lambda found: written.get(found[1], found[0]), message)


def option_names(command: click.Command) -> dict[str, str]:
    """The options and arguments of a command by the settings' names: ``{"batch_size": "--batch-size", "out": "OUT", ...}``."""
    arguments = {argument.name: argument.human_readable_name for argument in command.params if isinstance(argument, click.Argument) and argument.name}
    parameters = arguments | {option.name: option.opts[0] for option in options_of(command) if option.name}
    # An option's own name takes precedence over the name of another option's parameter
    typed = {text.lstrip("-").replace("-", "_"): text for option in options_of(command) for text in (*option.opts, *option.secondary_opts)}
    return parameters | typed


def _memory_advice(command: click.Command) -> str:
    """What to change when memory runs out, in terms of the options that the command has."""
    written = option_names(command)
    less = [f"{change} {written[name]}" for name, change in (("batch_size", "a smaller"), ("workers", "fewer")) if name in written]
    return f"Try {' or '.join(less)}." if less else "Close other programs, or use a machine with more memory."


def print_note(text: str) -> None:
    """A line that is no result, with options for settings: see :func:`with_options`."""
    context = click.get_current_context(silent=True)
    messages.print_note(with_options(text, context.command if context is not None else None))


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does, so that worker processes, locks and semaphores are released."""


@contextlib.contextmanager
def _termination() -> Iterator[list[int]]:
    """Raise Terminated in the main thread on SIGTERM, unless the process ignores or handles it. Yields a list that is not empty afterwards."""
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        raise Terminated

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield received
        return
    signal.signal(signal.SIGTERM, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_terminated() -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers repeat it
    if "RANK" not in os.environ:  # torchrun ends its processes this way, and says why
        print_note(STOPPED)
    sys.exit(TERMINATED)


def reported(function: Callable[P, R]) -> Callable[P, R]:
    """Expected failures become one paragraph and exit code 1, or 2 for wrong usage; Ctrl-C and SIGTERM one line and exit code 130 or 143."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _termination() as terminated:
            try:
                return _reported(function, *args, **kwargs)
            except Terminated:
                _exit_terminated()
            except click.ClickException:
                if terminated:  # a worker process had received SIGTERM, too, and ended first
                    _exit_terminated()
                raise

    return run


def _reported(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    try:
        return function(*args, **kwargs)
    except ReportedElsewhereError:
        sys.exit(1)
    except SettingsError as error:
        context = click.get_current_context()
        raise click.UsageError(with_options(str(error), context.command), context) from None
    except CapstreamError as error:
        raise click.ClickException(with_options(str(error), click.get_current_context().command)) from None
    except Terminated:
        raise
    except KeyboardInterrupt:
        print_note(STOPPED)
        sys.exit(INTERRUPTED)
    except PermissionError as error:
        if error.filename is None:  # a socket or process of the system, not a file
            raise click.ClickException(f"The system refused an operation ({error.strerror or error}). Check the user's permissions.") from None
        raise click.ClickException(
            f"{error.filename}: permission denied ({error.strerror}). Check its permissions, or choose another folder."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise click.ClickException(f"{error.filename}: not a usable file name ({error.strerror}). Check the name.") from None
    except (MemoryError, RuntimeError) as error:
        # torch raises its OutOfMemoryError on GPUs, and a plain RuntimeError on CPUs
        if not (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)):
            raise
        raise click.ClickException(f"Out of memory. {_memory_advice(click.get_current_context().command)}") from None
