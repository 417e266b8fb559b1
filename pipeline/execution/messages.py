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


class Telling:
    """How this process tells things; the command line sets it once, before anything is told."""

    quiet = False
    as_json = False


def tell_as(*, quiet: bool, as_json: bool) -> None:
    """Choose how this process tells things.

    Args:
        quiet: Leave out progress and what to run next.
        as_json: Write JSON lines, for programs.
    """
    Telling.quiet, Telling.as_json = quiet, as_json


def log_line(kind: Kind, text: str, **fields: Any) -> None:
    """A line for programs: the seconds since 1970, the kind, the text as people have it, and what else is known."""
    line = json.dumps({"time": round(time.time(), 3), "kind": kind, "text": text, **fields})
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def say(text: str) -> None:
    """A line of result."""
    click.echo(text)
    if Telling.as_json:
        log_line("result", text)


def note(text: str) -> None:
    """A line that is no result: what was left out, what was decided, what did not work."""
    if Telling.as_json:
        log_line("note", text)
    else:
        click.echo(text, err=True)


def show_rejects(rejects: dict[str, int], lines: Location | None) -> None:
    """What was left out, if anything was, and which file has a line for each, if one has yet."""
    if rejects:
        where = f" Each has a line in {lines}." if lines is not None else ""
        note(f"Left out: {', '.join(f'{count} {reason}' for reason, count in rejects.items())}.{where}")


def next_step(text: str, *, err: bool = False) -> None:
    """The last line: what to run next. ``err``: standard output holds something else."""
    if Telling.as_json and not Telling.quiet:
        log_line("next", text)
    elif not Telling.quiet:
        click.echo(f"Next: {text}", err=err)
