r"""Text as it is printed: names and messages from outside cannot move the cursor, color the terminal, or begin a line of their own.

Control characters (C0, DEL, C1), line and paragraph separators, bidirectional embeddings, overrides and isolates, and lone surrogates (bytes of
file names that are not UTF-8) are written as ``\x1b`` or ``\u202e``. All other text is unchanged, in any script.
"""

import json
import re
from typing import Any

from shards.json_files import readable_json

_UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: str) -> str:
    r"""A text on one line, with each character that a terminal would not show as itself escaped.

    >>> printable("a\n\x1b[31m\u202egpj.b\udcff, café 사진 👍🏽")
    'a\\n\\x1b[31m\\u202egpj.b\\udcff, café 사진 👍🏽'
    """
    return _UNPRINTABLE.sub(_escaped, text)


def printable_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    r"""A JSON document that is safe to print: the same characters as in :func:`printable` are escaped, as ``\u001b``.

    Args:
        value: The document.
        indent: As for :func:`json.dumps`.
        ascii_only: Escape all characters beyond ASCII, for a stream that cannot hold them.

    >>> printable_json({"image": "\x9b사진\udcff.jpg"})
    '{"image": "\\u009b사진\\udcff.jpg"}'
    """
    return json.dumps(value, indent=indent) if ascii_only else readable_json(value, indent=indent)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return _SHORT.get(found[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
