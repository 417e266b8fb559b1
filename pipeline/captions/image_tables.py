"""Tables that hold the images themselves, as Hugging Face keeps datasets: a column with the bytes of each image, and its captions beside it.

Only names and captions are read here; an image is remembered by its table and row (:class:`StoredImage`). The bytes are read once more for
rows whose name does not identify an image: those without a name, and those with a name that several rows have.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from pipeline.captions.locations import split_of_table
from pipeline.captions.records import CaptionFile, CaptionRow, StoredImage, file_of_rows
from pipeline.captions.table_files import TableFile, open_table
from pipeline.captions.tables import USUAL_COLUMNS, caption_texts, check_chosen, columns_error, find_captions, split_of_value, usual_column
from shards.errors import InputError
from shards.paths import Location, is_inside, same_name
from shards.rejects import Reject

CAPTION_ROWS = 1000
# Rows of images that are decoded at a time
IMAGE_ROWS = 8
# Usual names of a column of images, if several columns hold bytes
BYTES_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "picture", "photo")
NAME_COLUMNS = tuple(name for name in USUAL_COLUMNS["image"] if name not in BYTES_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class ImageColumns:
    """The columns of a table that holds images.

    Attributes:
        image: The column of the bytes: binary, or a struct with the field ``bytes``.
        names: Columns and fields whose parts, joined by "/", are an image's file name; may be empty.
    """

    image: str
    is_struct: bool
    names: tuple[str, ...]
    captions: tuple[str, ...]
    split: str | None

    @property
    def bytes_column(self) -> str:
        """The column, or the field, of the bytes."""
        return f"{self.image}.bytes" if self.is_struct else self.image


def holds_images(location: Location, chosen: Mapping[str, str]) -> bool:
    """Whether a Parquet or Arrow file has a column of images, and not only of their names.

    Raises:
        InputError: As :func:`pipeline.captions.table_files.open_table`.
    """
    with open_table(location) as table:
        return _image_column(table, chosen) is not None


def _image_column(table: TableFile, chosen: Mapping[str, str]) -> str | None:
    from pyarrow import types  # type: ignore[import-untyped]

    def is_binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    holding = {}
    for field in table.schema:
        is_struct = types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_binary(field.type.field("bytes").type if is_struct else field.type):
            holding[field.name] = is_struct
    if "image" in chosen:
        return chosen["image"] if chosen["image"] in holding else None
    lower = {name.lower(): name for name in reversed(list(holding))}
    usual = next((lower[name] for name in BYTES_COLUMNS if name in lower), None)
    structs = [name for name, is_struct in holding.items() if is_struct]
    return usual or next(iter(structs), None)


def _image_columns(table: TableFile, chosen: Mapping[str, str]) -> ImageColumns:
    """The columns of a table.

    Raises:
        InputError: It has no column of images, or none of captions.
    """
    names = [str(name) for name in table.schema.names]
    check_chosen(table.location, names, chosen)
    image, captions = _image_column(table, chosen), find_captions(names, chosen)
    if image is None:
        raise InputError(f"{table.location}: has no column of images, but other tables here have one. Its columns are: {', '.join(names)[:500]}.")
    if not captions:
        raise columns_error(table.location, names)
    kind = table.schema.field(image).type
    fields = [kind.field(number).name for number in range(getattr(kind, "num_fields", 0))]
    name = usual_column(names, [each for each in NAME_COLUMNS if each != image.lower()])
    if name is not None and name.lower() == "filename" and (folder := usual_column(names, ["filepath"])):
        parts: tuple[str, ...] = (folder, name)
    elif name is not None:
        parts = (name,)
    else:
        parts = (f"{image}.path",) if "path" in fields else ()
    split = chosen.get("split") or usual_column(names, USUAL_COLUMNS["split"])
    return ImageColumns(image=image, is_struct="bytes" in fields, names=parts, captions=captions, split=split)


def read_image_tables(locations: Sequence[Location], chosen: Mapping[str, str], *, name_splits: bool) -> CaptionFile:
    """Read the files of one table: names, captions and splits, and where the bytes of each image are.

    An image is what has one name and the same bytes. The first image of a name keeps it. Another image of that name, or one without a name,
    is called ``TABLE/ROW/NAME``.

    Args:
        locations: Parquet and Arrow files.
        chosen: As for :func:`pipeline.captions.tables.find_columns`.
        name_splits: A file without a column of splits belongs to the split that its name tells.

    Raises:
        InputError: pyarrow is missing, columns are not found, or a file is damaged.
        ResourceError: A server cannot be reached.
    """
    rows: list[CaptionRow | Reject] = []
    for location in locations:
        with open_table(location) as table:
            columns = _image_columns(table, chosen)
            split = split_of_table(location) if name_splits and columns.split is None else None
            rows += _rows(table, columns, split)
    return file_of_rows(_named(rows, _labels(locations)))


def _rows(table: TableFile, columns: ImageColumns, split: str | None) -> Iterator[CaptionRow | Reject]:
    wanted = list(dict.fromkeys([*columns.names, *columns.captions, *filter(None, [columns.split])]))
    shown = PurePosixPath(str(table.location)).name
    for batch in table.batches(wanted, batch_rows=CAPTION_ROWS):
        for number, values in enumerate(batch.rows.to_pylist(), batch.start):
            place = f"{shown} row {number}"
            try:
                captions = tuple(text for name in columns.captions for text in caption_texts(values.get(name)))
            except TypeError as problem:
                yield Reject(file=place, reason="malformed_row", message=f"{place}: {problem}")
                continue
            of_row = split_of_value(values.get(columns.split)) if columns.split else split
            name = _name(values, columns)
            if columns.split and of_row is None:
                message = f"{place}: {columns.split} is {values.get(columns.split)!r:.80}, which is not a split's name"
                yield Reject(file=name or place, reason="in_no_split", message=message)
                continue
            stored = StoredImage(table=table.location, column=columns.bytes_column, row=number)
            yield CaptionRow(file_name=name, captions=captions, split=of_row, stored=stored)


def _name(values: Mapping[str, Any], columns: ImageColumns) -> str:
    """An image's name without what would lead out of a folder; empty if it has none."""
    parts = []
    for column in columns.names:
        value = values.get(column) if column in values else values.get(column.partition(".")[0])
        value = value.get("path") if isinstance(value, dict) else value
        if isinstance(value, str) and value:
            parts.append(value)
    name = "/".join(parts)
    if name and not is_inside(name):
        path = PureWindowsPath(name.replace("\0", ""))
        name = "/".join(part for part in path.parts if part not in (path.anchor, ".."))
    return same_name(name)


def _named(rows: Sequence[CaptionRow | Reject], labels: Mapping[Location, str]) -> Iterator[CaptionRow | Reject]:
    """The rows with a name for each image that no other image has."""
    times = Counter(row.file_name for row in rows if isinstance(row, CaptionRow))
    unclear = [row.stored for row in rows if isinstance(row, CaptionRow) and row.stored and (not row.file_name or times[row.file_name] > 1)]
    digests = _digests(unclear)
    names: dict[tuple[str, bytes], str] = {}
    taken: set[str] = set()
    for row in rows:
        if isinstance(row, Reject) or row.stored is None or row.stored not in digests:
            yield row
            continue
        same = (row.file_name, digests[row.stored])
        if same not in names:
            place = f"{labels[row.stored.table]}/{row.stored.row}"
            free = row.file_name and row.file_name not in taken
            names[same] = row.file_name if free else "/".join(filter(None, (place, row.file_name)))
            taken.add(names[same])
        yield replace(row, file_name=names[same])


def _digests(images: Sequence[StoredImage]) -> dict[StoredImage, bytes]:
    """SHA-256 of the bytes of images; for one without bytes, its place."""
    found: dict[StoredImage, bytes] = {}
    by_column: dict[tuple[Location, str], list[StoredImage]] = {}
    for image in images:
        by_column.setdefault((image.table, image.column), []).append(image)
    for (location, column), of_column in by_column.items():
        with open_table(location) as table:
            for image, data in zip(of_column, stored_bytes(table, column, [image.row for image in of_column]), strict=True):
                found[image] = repr(image).encode() if data is None else hashlib.sha256(data).digest()
    return found


def stored_bytes(table: TableFile, column: str, rows: Sequence[int]) -> Iterator[memoryview | None]:
    """The bytes of some images of a table, valid until the next are read; None for an image without bytes.

    Args:
        table: The open table.
        column: Of the bytes.
        rows: Ascending.

    Raises:
        InputError: The table has fewer rows.
    """
    remaining = iter(rows)
    row = next(remaining, None)
    field = column.partition(".")[2]
    for batch in table.batches([column], batch_rows=IMAGE_ROWS, wanted=rows):
        values = batch.rows.column(0)
        while row is not None and row < batch.start + len(values):
            value = values[row - batch.start]
            if field and value.is_valid and hasattr(value, "keys"):
                value = value[field]
            yield memoryview(value.as_buffer()) if value.is_valid else None
            row = next(remaining, None)
        if row is None:
            return
    if row is not None:
        raise InputError(f"{table.location}: has no row {row} any more. Run the same command again, after the table is complete.")


def _labels(locations: Sequence[Location]) -> dict[Location, str]:
    """A short name for each file: its file name, or its path below their common folder if two have the same file name."""
    paths = {location: PurePosixPath(str(location).replace("\\", "/")) for location in locations}
    if len({path.name for path in paths.values()}) == len(paths):
        return {location: path.name for location, path in paths.items()}
    common = os.path.commonpath(list(paths.values()))
    return {location: str(path.relative_to(common)) for location, path in paths.items()}
