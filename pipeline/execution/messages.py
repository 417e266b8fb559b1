"""What a command tells beside its results, and in which form: for people, for nobody (``--quiet``), or for programs (``--log-json``).

For programs each thing told is a JSON object in a line of standard error, and so is each line of result, once more: standard output stays
what the command's own help says, so that it can be read by whoever reads it today.
"""

import json
import sys
import time
from typing import Any, Literal

import click

from shards.paths import Location

Kind = Literal["result", "note", "progress", "next", "error"]


class MessageSettings:
    """How this process tells things; the command line sets it once, before anything is told."""

    quiet = False
    as_json = False


def configure_messages(*, quiet: bool, as_json: bool) -> None:
    """Choose how this process tells things.

    Args:
        quiet: Leave out progress and what to run next.
        as_json: Write JSON lines, for programs.
    """
    MessageSettings.quiet, MessageSettings.as_json = quiet, as_json


def log_message(kind: Kind, text: str, **fields: Any) -> None:
    """A line for programs: the seconds since 1970, the kind, the text as people have it, and what else is known."""
    line = json.dumps({"time": round(time.time(), 3), "kind": kind, "text": text, **fields})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def print_result(text: str) -> None:
    """A line of result."""
    click.echo(text)
    if MessageSettings.as_json:
        log_message("result", text)


def print_note(text: str) -> None:
    """A line that is no result: what was left out, what was decided, what did not work."""
    if MessageSettings.as_json:
        log_message("note", text)
    else:
        click.echo(text, err=True)


def print_rejects(rejects: dict[str, int], lines: Location | None) -> None:
    """What was left out, if anything was, and which file has a line for each, if one has yet."""
    if rejects:
        where = f" Each has a line in {lines}." if lines is not None else ""
        print_note(f"Left out: {', '.join(f'{count} {reason}' for reason, count in rejects.items())}.{where}")


def print_next_step(text: str, *, err: bool = False) -> None:
    """The last line: what to run next. ``err``: standard output holds something else."""
    if MessageSettings.as_json and not MessageSettings.quiet:
        log_message("next", text)
    elif not MessageSettings.quiet:
        click.echo(f"Next: {text}", err=err)
