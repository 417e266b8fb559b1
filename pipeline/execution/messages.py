"""What a command prints besides its results, and in which form: for people, less of it (``--quiet``), or for programs (``--log-json``).

For programs each message is one JSON object per line on standard error. Lines of results are repeated there too: standard output stays as the
command's help describes it.

Everything that is printed passes through here, where :mod:`pipeline.execution.printable` escapes it; a test finds other places that print.
"""

import sys
import time
from typing import Any, Literal, TextIO

import click

from pipeline.execution.printable import printable, printable_json
from shards.paths import Location

Kind = Literal["result", "note", "progress", "next", "error"]


class MessageSettings:
    """How this process prints messages. The command line sets it once, before the first message."""

    quiet = False
    as_json = False


def configure_messages(*, quiet: bool, as_json: bool) -> None:
    """Choose how this process prints messages.

    Args:
        quiet: Omit progress and the next step.
        as_json: Print JSON lines, for programs.
    """
    MessageSettings.quiet, MessageSettings.as_json = quiet, as_json


def log_message(kind: Kind, text: str, **fields: Any) -> None:
    """Print a JSON line: the Unix time in seconds, the kind, the text as people read it, and more fields."""
    _print_json({"time": round(time.time(), 3), "kind": kind, "text": text, **fields}, sys.stderr)


def print_data(line: str) -> None:
    """Print a line of data, such as a caption: no message, so it is not repeated for programs."""
    _print(line, sys.stdout)


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Print a JSON document."""
    _print_json(value, sys.stdout, indent=indent)


def print_result(text: str) -> None:
    """Print a line of the result."""
    _print(text, sys.stdout)
    if MessageSettings.as_json:
        log_message("result", text)


def print_note(text: str) -> None:
    """Print a line that is not a result: what was left out, what was decided, what failed."""
    if MessageSettings.as_json:
        log_message("note", text)
    else:
        _print(text, sys.stderr)


def print_error(text: str, *, exit_code: int) -> None:
    """Print why the command fails."""
    if MessageSettings.as_json:
        log_message("error", text, exit_code=exit_code)
    else:
        _print(f"Error: {text}", sys.stderr)


def print_progress(text: str, **fields: Any) -> None:
    """Print a line of progress on standard error; ``fields`` are for programs."""
    if MessageSettings.as_json:
        log_message("progress", text, **fields)
    else:
        _print(text, sys.stderr)


def print_rejects(rejects: dict[str, int], rejects_file: Location | None) -> None:
    """Print how many inputs were left out, by reason, if any; and the file that lists them, if it is written already."""
    if rejects:
        where = f" Each has a line in {rejects_file}." if rejects_file is not None else ""
        print_note(f"Left out: {', '.join(f'{count} {reason}' for reason, count in rejects.items())}.{where}")


def print_next_step(text: str, *, err: bool = False) -> None:
    """Print the last line: what to run next. ``err``: on standard error, if standard output holds something else."""
    if MessageSettings.as_json and not MessageSettings.quiet:
        log_message("next", text)
    elif not MessageSettings.quiet:
        _print(f"Next: {text}", sys.stderr if err else sys.stdout)


def _print(line: str, stream: TextIO) -> None:
    click.echo(printable(line), stream)


def _print_json(value: Any, stream: TextIO, *, indent: int | None = None) -> None:
    ascii_only = not (stream.encoding or "").lower().startswith("utf")
    click.echo(printable_json(value, indent=indent, ascii_only=ascii_only), stream)
