"""Captions in tables: CSV and its variants, JSON lines, a JSON list of objects, Parquet. A row has an image, captions and perhaps a split."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.captions.formats import CaptionFormat, CaptionInput, described_formats
from pipeline.captions.records import CaptionFile, CaptionRow, file_of_rows
from pipeline.captions.table_files import ARROW_FILE_MAGIC, ARROW_STREAM_MAGIC, PARQUET_MAGIC, TableFile, open_table
from pipeline.captions.text_files import text_lines
from shards.errors import InputError
from shards.layout import SPLIT_NAME
from shards.paths import IMAGE_SUFFIXES, Location
from shards.rejects import Reject

# The usual names of each role's column, the most likely first
USUAL_COLUMNS = {
    "image": ("file_name", "filename", "image", "image_path", "image_file", "image_name", "img", "img_path", "filepath", "path", "file"),
    "caption": ("caption", "captions", "text", "texts", "sentence", "sentences", "sentences_raw", "raw", "comment", "description"),
    "split": ("split",),
}
NUMBERED_CAPTION = re.compile(r"caption_?\d+")
VALIDATION = ("validation", "valid", "dev")  # other names of split val
DELIMITERS = (",", "\t", ";", "|")
TABLE_ROWS = 1000
LOOKED_AT = 5  # lines of a file that may be a table without known columns
MAX_WAITING = 1000


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """The names of a table's columns by role.

    Attributes:
        folder: The column whose value precedes the image's file name, as in Karpathy's files.
    """

    image: str
    captions: tuple[str, ...]
    split: str | None
    folder: str | None


def find_columns(path: Location, names: Sequence[str], chosen: Mapping[str, str]) -> TableColumns | None:
    """Find the columns of images, captions and splits; None if there is no column of images or none of captions.

    Args:
        path: For messages.
        names: The table's columns.
        chosen: Columns that the user named: ``image``, ``caption``, ``split`` -> a name.

    Raises:
        InputError: The table does not have a chosen column.
    """
    check_chosen(path, names, chosen)
    image, captions = chosen.get("image") or usual_column(names, USUAL_COLUMNS["image"]), find_captions(names, chosen)
    if image is None or not captions:
        return None
    folder = usual_column(names, ["filepath"]) if image == usual_column(names, ["filename"]) and "image" not in chosen else None
    split = chosen.get("split") or usual_column(names, USUAL_COLUMNS["split"])
    return TableColumns(image=image, captions=captions, split=split, folder=folder)


def check_chosen(path: Location, names: Sequence[str], chosen: Mapping[str, str]) -> None:
    """Refuse columns that a table does not have.

    Raises:
        InputError: Names the table's columns.
    """
    for role, name in chosen.items():
        if name not in names:
            raise InputError(f"{path}: `column` {role}={name}: the table has no such column. Its columns are: {', '.join(names)[:500]}.")


def usual_column(names: Sequence[str], usual: Iterable[str]) -> str | None:
    """The first column, by the order of ``usual``, whose name in lower case is a usual one."""
    by_lower_case = {name.lower(): name for name in reversed(names)}
    return next((by_lower_case[name] for name in usual if name in by_lower_case), None)


def find_captions(names: Sequence[str], chosen: Mapping[str, str]) -> tuple[str, ...]:
    """The columns of captions: the chosen one, one of a usual name, or all numbered ones; empty if there are none."""
    caption = chosen.get("caption") or usual_column(names, USUAL_COLUMNS["caption"])
    return (caption,) if caption else tuple(name for name in names if NUMBERED_CAPTION.fullmatch(name.lower()))


def columns_error(path: Location, names: Sequence[str]) -> InputError:
    """The error about a table whose columns have no usual names."""
    return InputError(
        f"{path}: no column of images, or none of captions, has a usual name. Its columns are: {', '.join(names)[:500] or 'none'}. "
        f"Name them with `column` image=NAME and `column` caption=NAME. If it is not a table: known caption formats are {described_formats()}."
    )


def _columns(path: Location, names: Sequence[str], chosen: Mapping[str, str]) -> TableColumns:
    """As :func:`find_columns`, for a file that has to be a table.

    Raises:
        InputError: It has no column of images, or none of captions.
    """
    columns = find_columns(path, names, chosen)
    if columns is None:
        raise columns_error(path, names)
    return columns


def table_row(place: str, columns: TableColumns, values: Mapping[str, Any]) -> CaptionRow | Reject:
    """A row of a table, or the reject that says why it cannot be used."""
    try:
        image = values.get(columns.image)
        if isinstance(image, dict):  # Hugging Face's image: {bytes, path}
            image = image.get("path")
        if not isinstance(image, str) or not image:
            raise TypeError(f"{columns.image} is not a file name ({image!r:.60})")
        folder = values.get(columns.folder) if columns.folder else None
        file_name = "/".join(filter(None, (folder, image)))
        captions = tuple(text for name in columns.captions for text in caption_texts(values.get(name)))
        if columns.split is None:
            return CaptionRow(file_name=file_name, captions=captions)
        split = split_of_value(values.get(columns.split))
        if split is None:
            message = f"{place}: {columns.split} is {values.get(columns.split)!r:.80}, which is not a split's name"
            return Reject(file=image, reason="in_no_split", message=message)
        return CaptionRow(file_name=file_name, captions=captions, split=split)
    except TypeError as problem:
        return Reject(file=place, reason="malformed_row", message=f"{place}: {problem}")


def split_of_value(value: Any) -> str | None:
    """The split of a cell; None if it is not the name of one."""
    split = "val" if value in VALIDATION else value
    return split if isinstance(split, str) and SPLIT_NAME.fullmatch(split) else None


def caption_texts(value: Any) -> list[str]:
    """The captions of a cell: a text, a list of texts (which may be written as JSON), or Karpathy's list of objects with ``raw``.

    Raises:
        TypeError: It is something else.
    """
    if isinstance(value, str):
        if not (value.startswith("[") and value.endswith("]")):
            return [value]
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
    if value is None:
        return [""]
    if not isinstance(value, list):
        raise TypeError(f"the caption is not a text ({value!r:.60})")
    texts = [each.get("raw") if isinstance(each, dict) else each for each in value]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"the captions are not texts ({value!r:.60})")
    return [str(text) for text in texts] or [""]


def delimiter_of(header: str, chosen: Mapping[str, str]) -> str | None:
    """The delimiter between columns if ``header`` is the first line of a table of captions, else None."""
    known = {name for names in USUAL_COLUMNS.values() for name in names} | set(chosen.values())
    for delimiter in DELIMITERS:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        if len(names) > 1 and {*names, *(name.lower() for name in names)} & known:
            return delimiter
    return None


def unknown_columns(path: Path, text: str) -> str | None:
    """What to do about a table whose first line has none of the usual names; None if the text does not look like a table."""
    lines = re.split(r"\r\n|\r|\n", text)[: LOOKED_AT + 1]
    for delimiter in DELIMITERS:
        rows = [row for row in csv.reader(lines[:LOOKED_AT], delimiter=delimiter) if row]
        if len(rows) < 2 or len(rows[0]) < 2 or len({len(row) for row in rows}) > 1:
            continue
        cells = [cell.strip() for cell in rows[0]]
        shown = ", ".join(cells)[:500]
        if any(cell.lower().endswith(IMAGE_SUFFIXES) for cell in cells):
            return f"{path}: a table without a header: its first line is already a row ({shown}). Add a first line, for example: image,caption."
        return (
            f"{path}: a table of {len(cells)} columns, none of which has a usual name: {shown}. Name the columns of images and captions with "
            "`column` image=NAME and `column` caption=NAME."
        )
    return None


def read_delimited(path: Path, delimiter: str, chosen: Mapping[str, str], encoding: str | None = None) -> CaptionFile:
    """Read a text table with a header.

    Fields are quoted as in RFC 4180. Between ``|`` nothing is quoted, and spaces around fields are removed.

    Raises:
        InputError: The columns are not found, a quote does not end, or as :func:`pipeline.captions.text_files.text_lines`.
    """
    return file_of_rows(_delimited_rows(path, delimiter, chosen, encoding))


def _delimited_rows(path: Path, delimiter: str, chosen: Mapping[str, str], encoding: str | None) -> Iterator[CaptionRow | Reject]:
    unquoted = delimiter == "|"
    quoting: Literal[0, 3] = csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL
    reader = csv.reader(text_lines(path, encoding=encoding), delimiter=delimiter, strict=True, quoting=quoting)
    try:
        names = [name.strip() for name in next(reader, [])]
        columns = _columns(path, names, chosen)
        for fields in reader:
            place = f"line {reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(names):
                message = f"{path.name}: {place} has {len(fields)} fields, the first line has {len(names)}"
                yield Reject(file=place, reason="malformed_row", message=message)
                continue
            yield table_row(place, columns, dict(zip(names, (field.strip() for field in fields) if unquoted else fields, strict=True)))
    except csv.Error as problem:
        raise InputError(f"{path}: line {reader.line_num}: not a row of a table ({problem}). Check the quotes before this line.") from None


def read_json_lines(path: Path, chosen: Mapping[str, str], encoding: str | None = None) -> CaptionFile:
    """Read a file with a JSON object on each line.

    Raises:
        InputError: A line is not JSON, the columns are not found, or as :func:`pipeline.captions.text_files.text_lines`.
    """

    def objects() -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(text_lines(path, encoding=encoding), 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as problem:
                    raise InputError(f"{path}: line {number} is not JSON ({problem}). JSON lines have an object on each line.") from None

    return file_of_rows(_object_rows(path, objects(), chosen))


def read_json_list(path: Path, content: Sequence[Any], chosen: Mapping[str, str]) -> CaptionFile:
    """Read a JSON list of objects.

    Raises:
        InputError: The columns are not found.
    """
    return file_of_rows(_object_rows(path, ((f"entry {number}", value) for number, value in enumerate(content)), chosen))


def _object_rows(path: Path, objects: Iterable[tuple[str, Any]], chosen: Mapping[str, str]) -> Iterator[CaptionRow | Reject]:
    columns = None
    names: dict[str, None] = {}  # in order
    waiting: list[tuple[str, dict[str, Any]]] = []  # objects without an image or a caption, before one that names the columns
    for place, values in objects:
        if not isinstance(values, dict):
            yield Reject(file=place, reason="malformed_row", message=f"{place}: expected an object, found {values!r:.60}")
            continue
        waiting.append((place, values))
        if columns is None:
            names.update(dict.fromkeys(values))
            columns = find_columns(path, list(names), chosen) if names.keys() >= set(chosen.values()) else None
        if columns is None and len(waiting) == MAX_WAITING:
            break
        if columns is not None:
            yield from (table_row(where, columns, each) for where, each in waiting)
            waiting.clear()
    if waiting:
        _columns(path, list(names), chosen)


def read_table_file(location: Location, chosen: Mapping[str, str]) -> CaptionFile:
    """Read a Parquet or Arrow file. Only the columns of images, captions and splits are read, and never the bytes of an image.

    Raises:
        InputError: pyarrow is missing, the columns are not found, or the file is damaged.
        ResourceError: A server cannot be reached.
    """
    with open_table(location) as table:
        return file_of_rows(_table_rows(table, chosen))


def _table_rows(table: TableFile, chosen: Mapping[str, str]) -> Iterator[CaptionRow | Reject]:
    columns = _columns(table.location, table.schema.names, chosen)
    kind = table.schema.field(columns.image).type
    nested = getattr(kind, "num_fields", 0) and "path" in [kind.field(position).name for position in range(kind.num_fields)]
    wanted = [f"{columns.image}.path" if nested else columns.image, *columns.captions, *filter(None, (columns.split, columns.folder))]
    for batch in table.batches(wanted, batch_rows=TABLE_ROWS):
        for number, values in enumerate(batch.rows.to_pylist(), batch.start):
            yield table_row(f"row {number}", columns, values)


def _csv_delimiter(file: CaptionInput) -> str | None:
    return None if file.is_json else delimiter_of(file.first_line, file.columns)


CSV = CaptionFormat(
    description="CSV, TSV, or fields between ; or |, whose first line names the columns",
    matches=lambda file: _csv_delimiter(file) is not None,
    read=lambda file: read_delimited(file.path, _csv_delimiter(file) or ",", file.columns, file.encoding),
)
JSON_LINES = CaptionFormat(
    description="an object with an image and captions on each line",
    matches=lambda file: file.is_json_lines,
    read=lambda file: read_json_lines(file.path, file.columns, file.encoding),
)
JSON_LIST = CaptionFormat(
    description="a list of objects with an image and captions",
    matches=lambda file: isinstance(file.document, list),
    read=lambda file: read_json_list(file.path, file.document, file.columns),
)
PARQUET = CaptionFormat(
    description="columns of images and captions",
    matches=lambda file: file.beginning.startswith(PARQUET_MAGIC),
    read=lambda file: read_table_file(file.path, file.columns),
)
ARROW = CaptionFormat(
    description="the same in Arrow's format, as datasets saves it",
    matches=lambda file: file.beginning.startswith((ARROW_FILE_MAGIC, ARROW_STREAM_MAGIC)),
    read=lambda file: read_table_file(file.path, file.columns),
)
