"""SHA-256 digests of JSON content and of files."""

import hashlib
import json
from pathlib import Path
from typing import Any


def json_digest(content: Any) -> str:
    """SHA-256 (hex) of ``content`` as compact JSON in UTF-8, keys in their order."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
