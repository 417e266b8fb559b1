"""The HTML page: one file that needs no network, made from the template, style and scripts in ``page/``.

All text from outside (captions, file names, names of runs) is stored as JSON in which nothing can end the element that holds it, and enters the
page as text only. A content security policy allows no script but the page's own. Thumbnails are stored in blocks that are parsed when they come
into view.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.reporting.thumbnails import Thumbnails

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("base.js", "scores.js", "curves.js", "gallery.js", "controls.js", "settings.js", "main.js")
THUMBNAILS_PER_BLOCK = 250


def safe_json(content: Any) -> bytes:
    r"""JSON in ASCII in which no HTML parser finds a tag, a comment or a line break.

    >>> safe_json("</script>&\u2028")
    b'"\\u003c/script\\u003e\\u0026\\u2028"'
    """
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text).encode("ascii")


def page_parts(content: dict[str, Any], thumbnails: Thumbnails | None) -> Iterator[bytes]:
    """The bytes of the page in consecutive parts: the template filled with style, scripts, data and thumbnails.

    The content security policy allows the style and the script by their digests.
    """
    style, script = _read("page.css").strip("\n"), _script()
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_source_hash(style)}'; script-src '{_source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    filled = {"POLICY": policy, "STYLE": style, "SCRIPT": script}
    page = re.sub(r"\{\{(POLICY|STYLE|SCRIPT)\}\}", lambda found: filled[found[1]], _read("page.html"))
    before, between = page.split("{{DATA}}")
    between, after = between.split("{{THUMBNAILS}}")
    yield before.encode()
    yield safe_json(content)
    yield between.encode()
    results = thumbnails.results if thumbnails is not None else ()
    for start in range(0, len(results), THUMBNAILS_PER_BLOCK):
        block = results[start : start + THUMBNAILS_PER_BLOCK]
        yield b'<script type="text/plain" id="thumbnails-%d">' % (start // THUMBNAILS_PER_BLOCK)
        # A line per image: base64, or the reason in a word, which cannot be the base64 of a JPEG ("/9j/...")
        yield b"\n".join(result.encode() if isinstance(result, str) else base64.b64encode(result) for result in block)
        yield b"</script>\n"
    yield after.encode()


def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _script() -> str:
    """The scripts in one function, so that they share a scope that is not the page's."""
    return '"use strict";\n(() => {\n' + "".join(_read(name) for name in SCRIPTS) + "})();"


def _source_hash(text: str) -> str:
    """The source expression of an inline element in a content security policy (W3C, Content Security Policy Level 3, hash-source)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
