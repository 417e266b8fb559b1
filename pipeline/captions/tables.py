"""Captions in tables: CSV and its kin, JSON lines, a JSON list of objects, Parquet. A row has an image, captions, and perhaps a split."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.captions.records import FORMS, CaptionFile, Row, gather
from pipeline.captions.text_files import text_lines
from shards.errors import InputError
from shards.layout import SPLIT_NAME
from shards.rejects import Reject

# The names that columns usually have, the likeliest first.
USUAL = {
    "image": ("file_name", "filename", "image", "image_path", "image_file", "image_name", "img", "img_path", "filepath", "path", "file"),
    "caption": ("caption", "captions", "text", "texts", "sentence", "sentences", "raw", "comment", "description"),
    "split": ("split",),
}
NUMBERED_CAPTION = re.compile(r"caption_?\d+")
VALIDATION = ("validation", "valid", "dev")  # others' names of what is val here
DELIMITERS = (",", "\t", ";", "|")
PARQUET_ROWS = 1000


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table hold what; ``folder`` stands before the image's file name, as in Karpathy's files."""

    image: str
    captions: tuple[str, ...]
    split: str | None
    folder: str | None


def find_columns(path: Path, names: Sequence[str], said: Mapping[str, str]) -> Columns | None:
    """The columns among ``names``, or None if there is no image or no caption among them.

    Args:
        said: What ``--column`` says: ``image``, ``caption``, ``split`` -> a name.

    Raises:
        InputError: A column that was said is not there.
    """
    for role, name in said.items():
        if name not in names:
            raise InputError(f"{path}: --column {role}={name}: there is no such column (there: {', '.join(names)[:500]}).")
    lower = {name.lower(): name for name in reversed(names)}

    def find(role: str) -> str | None:
        return said.get(role) or next((lower[usual] for usual in USUAL[role] if usual in lower), None)

    image, caption = find("image"), find("caption")
    numbered = tuple(name for name in names if NUMBERED_CAPTION.fullmatch(name.lower()))
    captions = (caption,) if caption else numbered
    if image is None or not captions:
        return None
    folder = lower.get("filepath") if image == lower.get("filename") and "image" not in said else None
    return Columns(image=image, captions=captions, split=find("split"), folder=folder)


def _row(place: str, columns: Columns, values: Mapping[str, Any]) -> Row | Reject:
    """A row of a table, or why it is none."""
    try:
        image = values.get(columns.image)
        if isinstance(image, dict):  # Hugging Face's image: {bytes, path}
            image = image.get("path")
        if not isinstance(image, str) or not image:
            raise TypeError(f"{columns.image} is no file name ({image!r:.60})")
        folder = values.get(columns.folder) if columns.folder else None
        captions = tuple(text for name in columns.captions for text in _texts(values.get(name)))
        if columns.split is None:
            return Row(file_name="/".join(filter(None, (folder, image))), captions=captions)
        split = values.get(columns.split)
        split = "val" if split in VALIDATION else split
        if not isinstance(split, str) or not SPLIT_NAME.fullmatch(split):
            return Reject(file=image, reason="in_no_split", message=f"{place}: {columns.split} is {split!r:.80}, which names no split")
        return Row(file_name="/".join(filter(None, (folder, image))), captions=captions, split=split)
    except TypeError as problem:
        return Reject(file=place, reason="malformed_row", message=f"{place}: {problem}")


def _texts(value: Any) -> list[str]:
    """The captions of a cell: a text, a list of texts (as JSON perhaps), or a list of objects with ``raw`` as Karpathy has them."""
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
        raise TypeError(f"the caption is no text ({value!r:.60})")
    texts = [each.get("raw") if isinstance(each, dict) else each for each in value]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"the captions are no texts ({value!r:.60})")
    return [str(text) for text in texts]


def _known(columns: Columns | None, path: Path, names: Iterable[str]) -> Columns:
    if columns is None:
        raise InputError(
            f"{path}: has no column of images, or none of captions, by a usual name (there: {', '.join(names)[:500] or 'none'}). "
            f"Name them: --column image=NAME --column caption=NAME. Or is it something else? Captions may be: {FORMS}."
        )
    return columns


def delimiter_of(header: str, said: Mapping[str, str]) -> str | None:
    """What stands between the columns, if ``header`` is the first line of a table of captions."""
    known = {name for names in USUAL.values() for name in names} | set(said.values())
    fields = {delimiter: _fields(header, delimiter) for delimiter in DELIMITERS}
    return next((d for d, names in fields.items() if len(names) > 1 and {*names, *(name.lower() for name in names)} & known), None)


def _fields(header: str, delimiter: str) -> list[str]:
    return [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]


def read_delimited(path: Path, delimiter: str, said: Mapping[str, str]) -> CaptionFile:
    """A table in text, with a header: fields quoted as in RFC 4180, but for ``|``, where nothing is quoted and spaces around fields go.

    Raises:
        InputError: No such columns; a quote that does not end; or as :func:`pipeline.captions.text_files.text_lines`.
    """
    return gather(_delimited_rows(path, delimiter, said))


def _delimited_rows(path: Path, delimiter: str, said: Mapping[str, str]) -> Iterator[Row | Reject]:
    bare = delimiter == "|"
    reader = csv.reader(text_lines(path), delimiter=delimiter, strict=True, quoting=csv.QUOTE_NONE if bare else csv.QUOTE_MINIMAL)
    try:
        names = [name.strip() for name in next(reader, [])]
        columns = _known(find_columns(path, names, said), path, names)
        for fields in reader:
            place = f"line {reader.line_num}"
            if not fields:
                continue
            if len(fields) != len(names):
                problem = f"{path.name}: {place} has {len(fields)} fields, the first line {len(names)}"
                yield Reject(file=place, reason="malformed_row", message=problem)
                continue
            yield _row(place, columns, dict(zip(names, (field.strip() for field in fields) if bare else fields, strict=True)))
    except csv.Error as problem:
        raise InputError(f"{path}: line {reader.line_num}: not a row of a table ({problem}). Check the quotes before it.") from None


def read_json_lines(path: Path, said: Mapping[str, str]) -> CaptionFile:
    """An object on each line.

    Raises:
        InputError: A line is none; no such columns; or as :func:`pipeline.captions.text_files.text_lines`.
    """

    def objects() -> Iterator[tuple[str, Any]]:
        for number, line in enumerate(text_lines(path), 1):
            if line.strip():
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as problem:
                    raise InputError(f"{path}: line {number} is not JSON ({problem}). JSON lines have an object on each line.") from None

    return gather(_object_rows(path, objects(), said))


def read_json_list(path: Path, content: Sequence[Any], said: Mapping[str, str]) -> CaptionFile:
    """A list of objects.

    Raises:
        InputError: No such columns.
    """
    return gather(_object_rows(path, ((f"entry {number}", value) for number, value in enumerate(content)), said))


def _object_rows(path: Path, objects: Iterable[tuple[str, Any]], said: Mapping[str, str]) -> Iterator[Row | Reject]:
    columns = None
    for place, values in objects:
        if not isinstance(values, dict):
            yield Reject(file=place, reason="malformed_row", message=f"{place}: an object was expected, found {values!r:.60}")
            continue
        columns = columns or _known(find_columns(path, list(values), said), path, values)
        yield _row(place, columns, values)


def read_parquet(path: Path, said: Mapping[str, str]) -> CaptionFile:
    """A Parquet file, through pyarrow. Of other columns, and of images that lie in the file, nothing is read.

    Raises:
        InputError: pyarrow is missing, no such columns, or a damaged file.
    """
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise InputError(f"{path}: a Parquet file, for which pyarrow is needed: pip install '.[parquet]'") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return gather(_parquet_rows(path, file, said))
    except (pyarrow.ArrowException, OSError) as problem:
        raise InputError(f"{path}: not a whole Parquet file ({problem}).") from None


def _parquet_rows(path: Path, file: Any, said: Mapping[str, str]) -> Iterator[Row | Reject]:
    names = file.schema_arrow.names
    columns = _known(find_columns(path, names, said), path, names)
    kind = file.schema_arrow.field(columns.image).type
    nested = getattr(kind, "num_fields", 0) and "path" in [kind.field(place).name for place in range(kind.num_fields)]
    wanted = [f"{columns.image}.path" if nested else columns.image, *columns.captions, *filter(None, (columns.split, columns.folder))]
    number = 0
    for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=wanted):
        for values in batch.to_pylist():
            yield _row(f"row {number}", columns, values)
            number += 1
