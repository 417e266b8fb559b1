"""What a command tells beside its results, and in which form: for people, for nobody (``--quiet``), or for programs (``--log-json``).

For programs each thing told is a JSON object in a line of standard error, and so is each line of result, once more: standard output stays
what the command's own help says, so that it can be read by whoever reads it today.
"""

import json
import sys
import time
from typing import Any, Literal

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
