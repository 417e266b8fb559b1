"""JSON files: committed writes, and reads whose errors name the file and the next step.

Files that Capstream writes have a ``format_version``. The most important ones are sealed: they hold a digest of their own content.
"""

import json
import re
from pathlib import Path
from typing import Any

from shards.atomic import committed_file
from shards.digests import json_digest
from shards.errors import CapstreamError, DamageError, InputError, MismatchError

MAX_JSON_BYTES = 2 << 30
UNREADABLE = re.compile(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def json_bytes(content: Any) -> bytes:
    """JSON as files hold it: UTF-8, an indent of one space, keys in their order."""
    return (json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode("utf-8", "surrogatepass")


def readable_json(content: Any, indent: int | None = None) -> str:
    r"""JSON for people and programs: letters of every script as they are.

    Escaped are characters that cannot be stored or that a terminal or an editor would obey: lone surrogates, control characters, line and
    paragraph separators, and those that change the direction of writing.

    >>> readable_json({"file": "강아지.jpg", "message": chr(27) + chr(0x202e)})
    '{"file": "강아지.jpg", "message": "\\u001b\\u202e"}'
    """
    return UNREADABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(content, ensure_ascii=False, indent=indent))


def write_json(path: Path, content: Any) -> None:
    """Commit ``content`` as JSON under ``path``."""
    with committed_file(path) as file:
        file.write(json_bytes(content))


def read_json(path: Path, *, what: str, error: type[CapstreamError] = InputError, repair: str = "", encoding: str | None = None) -> Any:
    """Read a JSON file with any content.

    Args:
        path: The file.
        what: What the file should be, for messages ("COCO caption file").
        error: Raised for content that is not JSON: :class:`InputError` for users' files, :class:`DamageError` for Capstream's own.
        repair: The next step, for the message about such content.
        encoding: Of a user's file. By default, one of Unicode's.

    Raises:
        InputError: The file is missing, unreadable or larger than ``MAX_JSON_BYTES``.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes, more than the limit for a {what} ({MAX_JSON_BYTES}).")
        content = path.read_bytes()
        return json.loads(content if encoding is None else content.decode(encoding).removeprefix("\ufeff"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file (expected a {what}).") from None
    except OSError as problem:
        raise InputError(f"{path}: cannot be read as a {what}: {problem.strerror}.") from None
    except UnicodeDecodeError as problem:
        line = problem.object[: problem.start].count(b"\n") + 1
        raise error(f"{path}: not a {what}: line {line} is not {encoding or 'UTF-8'} ({problem.reason}). {repair}".rstrip()) from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: not a {what}: it is not valid JSON ({problem}). {repair}".rstrip()) from None


def read_versioned_json(path: Path, *, what: str, format_version: int, repair: str = "") -> dict[str, Any]:
    """Read a JSON object that Capstream wrote, and check its ``format_version``.

    Args:
        path: The file.
        what: What the file should be, for messages ("shard sidecar").
        format_version: The version that this program reads.
        repair: What to do about a damaged file, for messages.

    Raises:
        InputError: The file is missing.
        DamageError: It is not a JSON object.
        MismatchError: It has another format version.
    """
    content = read_json(path, what=what, error=DamageError, repair=repair)
    if not isinstance(content, dict):
        raise DamageError(f"{path}: not a {what}: expected a JSON object, found {type(content).__name__}. {repair}".rstrip())
    found = content.get("format_version")
    if found != format_version:
        raise MismatchError(
            f"{path}: format version {found!r}; this program reads a {what} of format version {format_version}. Make the file again with "
            "this version of Capstream, or give another file if this is something else."
        )
    return content


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with a digest of all of it, so that a flipped bit anywhere in the file is noticed."""
    return {**content, "self_digest": json_digest(content)}


def check_seal(path: Path, content: dict[str, Any], repair: str) -> None:
    """Check the digest that :func:`sealed` added.

    Raises:
        DamageError: The content has another digest; ``repair`` says what to do.
    """
    written = content.get("self_digest")
    found = json_digest({key: value for key, value in content.items() if key != "self_digest"})
    if written != found:
        raise DamageError(f"{path}: damaged: its content has digest {found}, but the file lists {written}. {repair}")


def check_count(value: Any) -> int:
    """Return ``value`` if it is a whole number of at least 0; raises ValueError otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"expected a count, found {value!r}")
    return value
