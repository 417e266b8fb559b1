"""Rejects: the inputs that were left out, each with a reason, and ``rejects.jsonl``, which has a line for each."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from shards.atomic import committed_file
from shards.json_files import readable_json
from shards.layout import REJECTS_FILE


@dataclass(frozen=True, kw_only=True)
class Reject:
    """One input that was left out.

    Attributes:
        file: The input.
        reason: The kind of reason, a word that can be counted ("missing_file").
        message: The reason as a sentence.
    """

    file: str
    reason: str
    message: str


def reject_line(split: str, reject: Reject) -> bytes:
    """One line of ``rejects.jsonl``: letters of every script as they are, and no character that could break a line or control a terminal."""
    return readable_json({"split": split, **asdict(reject)}).encode() + b"\n"


def write_rejects(folder: Path, lines: Iterable[bytes]) -> bool:
    """Commit ``rejects.jsonl`` unless it has exactly this content already; returns whether it was written."""
    path, content = folder / REJECTS_FILE, b"".join(lines)
    if path.is_file() and path.read_bytes() == content:
        return False
    with committed_file(path) as file:
        file.write(content)
    return True
