"""The caption formats by name: how a format is recognised and how it is read.

To add a format, write a module with a :class:`CaptionFormat` and add a line below :data:`CAPTION_FORMATS`. Help texts and error messages
take the formats from there. The modules are imported when a format is first used, so that listing the names is cheap.

A format is recognised by content alone, and the first one that matches reads the file. A file name says nothing.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.registry import Registry
from pipeline.captions.encodings import is_utf8, not_utf8
from pipeline.captions.table_files import ARROW_FILE_MAGIC, ARROW_STREAM_MAGIC, PARQUET_MAGIC
from shards.errors import InputError

if TYPE_CHECKING:
    from pipeline.captions.records import CaptionFile

BEGINNING_BYTES = 1 << 16
# JSON Lines may have long lines: a row with a thousand captions or with an embedding.
FIRST_LINE_CHARACTERS = 1 << 24
BOM = "\ufeff"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# Files that begin with these bytes are not UTF-8 text, and the user can convert them.
CONVERTIBLE = {
    b"\xff\xfe": "is UTF-16: give `encoding` utf-16, or save it as UTF-8",
    b"\xfe\xff": "is UTF-16: give `encoding` utf-16, or save it as UTF-8",
    b"\xd0\xcf\x11\xe0": "is an old Excel file: save it as .xlsx, or as CSV in UTF-8",
    b"\x1f\x8b": "is compressed: unpack it",
    b"PK\x03\x04": "is compressed: unpack it",
}


@dataclass(frozen=True, kw_only=True)
class CaptionInput:
    """A file or folder of captions whose format is not known yet.

    Attributes:
        path: The file or folder.
        columns: For tables: ``image``, ``caption``, ``split`` -> the column's name.
        restval: For Karpathy's files: make split ``restval`` part of ``train``.
        encoding: Of text, UTF-8 by default.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    restval: bool = True
    encoding: str | None = None

    @functools.cached_property
    def beginning(self) -> bytes:
        """The first 64 KiB of a file; empty for a folder.

        Raises:
            InputError: It is missing or cannot be read.
        """
        if self.path.is_dir():
            return b""
        try:
            with self.path.open("rb") as file:
                return file.read(BEGINNING_BYTES)
        except FileNotFoundError:
            raise InputError(f"{self.path}: no such file or folder of captions.") from None
        except OSError as problem:
            raise InputError(f"{self.path}: cannot be read: {problem.strerror}.") from None

    @functools.cached_property
    def text(self) -> str:
        """The beginning as text, without a byte order mark and leading white space; empty if it is another kind of file."""
        if self.beginning.startswith(tuple(CONVERTIBLE)) and not (self.encoding and self.beginning.startswith(UTF_16)):
            return ""
        return self.beginning.decode(self.encoding or "utf-8", "replace").removeprefix(BOM).lstrip()

    @property
    def first_line(self) -> str:
        """The first line of the text."""
        return next(iter(re.split(r"[\r\n]", self.text, maxsplit=1)))

    @property
    def is_json(self) -> bool:
        """Whether the text begins with an object or a list, as one JSON document and JSON lines do."""
        return self.text.startswith(("{", "["))

    @functools.cached_property
    def is_json_lines(self) -> bool:
        """Whether the first line is an object of its own and not a complete COCO or Karpathy file."""
        try:
            value = json.loads(self._complete_first_line()) if self.is_json else None
        except (ValueError, RecursionError):
            return False
        return isinstance(value, dict) and "images" not in value

    def _complete_first_line(self) -> str:
        """The first line, even if it is longer than the beginning; empty if it is longer than ``FIRST_LINE_CHARACTERS``."""
        if self.first_line != self.text or len(self.beginning) < BEGINNING_BYTES:
            return self.first_line
        with self.path.open(encoding=self.encoding or "utf-8-sig", errors="replace") as file:
            return next((line for line in iter(lambda: file.readline(FIRST_LINE_CHARACTERS), "") if line.strip()), "")

    @property
    def is_columnar(self) -> bool:
        """Whether the file is a Parquet or Arrow file."""
        return self.beginning.startswith((PARQUET_MAGIC, ARROW_FILE_MAGIC, ARROW_STREAM_MAGIC))

    @functools.cached_property
    def document(self) -> Any:
        """The complete file as JSON, read once and kept; None if it is not one JSON document.

        Raises:
            InputError: It begins as a JSON document, but is not valid JSON in UTF-8.
        """
        from shards.json_files import read_json

        if not self.is_json or self.is_json_lines:
            return None
        return read_json(self.path, what="captions file", repair="Save it as UTF-8, or give its `encoding`.", encoding=self.encoding)


@dataclass(frozen=True, kw_only=True)
class CaptionFormat:
    """A caption format.

    Attributes:
        description: What such a file looks like, in one line.
        matches: Whether an input has this format, judged by its content.
        read: Reads an input that matches; InputError if it is malformed.
    """

    description: str
    matches: Callable[[CaptionInput], bool]
    read: Callable[[CaptionInput], "CaptionFile"]


CAPTION_FORMATS = Registry[CaptionFormat]("caption format")
CAPTION_FORMATS.register("Karpathy", "pipeline.captions.karpathy:KARPATHY")
CAPTION_FORMATS.register("COCO", "pipeline.captions.coco:COCO")
CAPTION_FORMATS.register("token file", "pipeline.captions.text_files:TOKEN_FILE")
CAPTION_FORMATS.register("CSV", "pipeline.captions.tables:CSV")
CAPTION_FORMATS.register("Excel", "pipeline.captions.excel:EXCEL")
CAPTION_FORMATS.register("JSON Lines", "pipeline.captions.tables:JSON_LINES")
CAPTION_FORMATS.register("JSON list", "pipeline.captions.tables:JSON_LIST")
CAPTION_FORMATS.register("Parquet", "pipeline.captions.tables:PARQUET")
CAPTION_FORMATS.register("Arrow", "pipeline.captions.tables:ARROW")
CAPTION_FORMATS.register("folder", "pipeline.captions.text_files:FOLDER")


def format_names() -> str:
    """The names of all formats, for help texts."""
    return ", ".join(CAPTION_FORMATS)


def described_formats() -> str:
    """The names and descriptions of all formats, for error messages."""
    return "; ".join(f"{name} ({each.description})" for name, each in CAPTION_FORMATS.items())


def format_of(file: CaptionInput) -> CaptionFormat:
    """The first format of the registry that matches.

    Raises:
        InputError: No format matches; or the file is missing, or too damaged to tell its format.
    """
    for caption_format in CAPTION_FORMATS.values():
        if caption_format.matches(file):
            return caption_format
    if b"opendocument.spreadsheet" in file.beginning[:100]:
        raise InputError(f"{file.path}: is an OpenDocument table: save it as .xlsx, or as CSV in UTF-8, first.")
    for mark, problem in CONVERTIBLE.items():
        if file.beginning.startswith(mark):
            raise InputError(f"{file.path}: {problem} first.")
    if file.text and b"\0" not in file.beginning:
        from pipeline.captions.tables import unknown_columns

        if not file.encoding and not is_utf8(file.beginning):
            raise not_utf8(file.path)
        if table := unknown_columns(file.path, file.text):
            raise InputError(table)
    shown = "is empty" if not file.text else "is not text" if b"\0" in file.beginning else f"begins with {file.first_line[:40]!r}"
    raise InputError(
        f"{file.path}: {shown}, which is not a known caption format. Known formats are: {described_formats()}. "
        "If it is a table with other column names, name them with `column` image=NAME and `column` caption=NAME."
    )
