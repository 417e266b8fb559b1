"""What a command prints besides its results, and in which form: for people, less of it (``--quiet``), or for programs (``--log-json``).

For programs each message is one JSON object per line on standard error. Lines of results are repeated there too: standard output stays as the
command's help describes it.
"""

import sys
import time
from typing import Any, Literal

import click

from shards.json_files import readable_json
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
    line = readable_json({"time": round(time.time(), 3), "kind": kind, "text": text, **fields})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def print_result(text: str) -> None:
    """Print a line of the result."""
    click.echo(text)
    if MessageSettings.as_json:
        log_message("result", text)


def print_note(text: str) -> None:
    """Print a line that is not a result: what was left out, what was decided, what failed."""
    if MessageSettings.as_json:
        log_message("note", text)
    else:
        click.echo(text, err=True)


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
        click.echo(f"Next: {text}", err=err)
