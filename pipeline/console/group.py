"""The group of all commands: it imports a command when it is asked for, and applies the options that come before a command."""

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import click

from pipeline.console.settings import read_defaults
from pipeline.execution.library_warnings import print_library_messages
from pipeline.execution.messages import MessageSettings, configure_messages, log_message, print_error
from pipeline.execution.printable import printable
from shards.found_instead import near_name


@contextlib.contextmanager
def _printable_errors() -> Iterator[None]:
    """Escape the message of an error, which click prints: it quotes what was typed, and names files."""
    try:
        yield
    except click.ClickException as error:
        _set_message(error, printable(error.message or ""))
        raise


def _set_message(error: click.ClickException, message: str) -> None:
    vars(error)["message"] = message  # declared final; a new error would lose the option and the context that this one names


class StandardStream(io.TextIOWrapper):
    """A standard stream in the place of Python's own, with the same settings. :meth:`failed` is called when it cannot be written."""

    def __init__(self, replaced: io.TextIOWrapper) -> None:
        settings = {"encoding": replaced.encoding, "errors": replaced.errors, "line_buffering": replaced.line_buffering}
        super().__init__(replaced.buffer, **settings)  # type: ignore[arg-type]
        self._replaced = replaced  # without a reference to it, it would close the buffer

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self.failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.failed(error)

    def failed(self, error: OSError) -> None:
        """What to do about a failed write."""
        raise NotImplementedError

    def discard(self) -> None:
        """Discard what is in the buffer and all that follows. Otherwise Python would try to write it once more when it ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


class StandardOutput(StandardStream):
    """Standard output that remembers the error of a failed write, so that it can be told from the errors of other files."""

    error: OSError | None = None

    def failed(self, error: OSError) -> None:
        self.error = error
        raise error


class StandardError(StandardStream):
    """Standard error that loses what cannot be written: hours of work do not end because the log's disk is full or its reader is gone."""

    def failed(self, error: OSError) -> None:  # noqa: ARG002 - there is no other place to report it
        self.discard()


def _replace_standard_streams() -> None:
    """Put :class:`StandardOutput` and :class:`StandardError` in the place of Python's own streams; not of others, which a test may have set."""
    if type(sys.stdout) is io.TextIOWrapper:
        sys.stdout = StandardOutput(sys.stdout)
    if type(sys.stderr) is io.TextIOWrapper:
        sys.stderr = StandardError(sys.stderr)
    elif sys.stderr is None:  # closed (``2>&-``): click would print messages among the results
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


class CommandGroup(click.Group):
    """Lists its commands in the order of their table, and applies ``--config``, ``--quiet`` and ``--log-json``.

    ``commands`` may be a :class:`model.registry.Registry`, which imports a command when it is looked up.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click's; standard output on a full disk is an error of one line. For a closed pipe (``| head``), click exits silently with 1."""
        _replace_standard_streams()
        output = sys.stdout
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            if not (isinstance(output, StandardOutput) and error is output.error):
                raise
            output.discard()
            print_error(f"Standard output cannot be written ({error.strerror}). Write it to another place.", exit_code=1)
            sys.exit(1)

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        with _printable_errors():
            return super().make_context(*args, **settings)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            _set_message(error, error.message + near_name(args[0], self.commands))
            raise

    def invoke(self, ctx: click.Context) -> Any:
        configure_messages(quiet=ctx.params["quiet"], as_json=ctx.params["log_json"])
        print_library_messages()
        try:
            if ctx.params["config"] is not None:
                ctx.default_map = read_defaults(ctx.params["config"], self.commands)
            return super().invoke(ctx)
        except click.ClickException as error:
            if not MessageSettings.as_json:
                with _printable_errors():
                    raise
            log_message("error", error.format_message(), exit_code=error.exit_code)
            ctx.exit(error.exit_code)
        except Exception as error:  # a program that reads JSON lines gets the traceback as one of them
            about_output = isinstance(sys.stdout, StandardOutput) and error is sys.stdout.error
            if about_output or isinstance(error, (click.exceptions.Exit, click.Abort)) or not MessageSettings.as_json:
                raise
            log_message("error", "".join(traceback.format_exception(error)), exit_code=1)
            ctx.exit(1)
