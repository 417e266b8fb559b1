"""Captions in Excel workbooks (.xlsx): the first sheet whose first row names the columns of a table."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.captions.formats import CaptionFormat, CaptionInput
from pipeline.captions.records import CaptionFile, CaptionRow, file_of_rows
from pipeline.captions.tables import TableColumns, columns_error, find_columns, table_row
from shards.errors import InputError, first_line
from shards.rejects import Reject

# Of all parts of a workbook, unpacked
MAX_UNPACKED_BYTES = 2 << 30
WORKBOOK = "xl/workbook.xml"


def read_excel(path: Path, chosen: Mapping[str, str]) -> CaptionFile:
    """Read a workbook with openpyxl, row by row.

    Raises:
        InputError: openpyxl is missing, no sheet has the columns, or the file is damaged or too large.
    """
    try:
        import openpyxl
    except ImportError:
        raise InputError(f"{path}: reading an Excel file requires openpyxl: pip install '.[excel]'. Or save the sheet as CSV in UTF-8.") from None
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(part.file_size for part in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise InputError(f"{path}: has {unpacked} bytes when it is unpacked, more than the limit for a captions file ({MAX_UNPACKED_BYTES}).")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            return file_of_rows(_rows(path, book, chosen))
        finally:
            book.close()
    except InputError:
        raise
    except Exception as problem:  # openpyxl raises whatever its XML and zip readers raise
        raise InputError(f"{path}: not a complete Excel file ({first_line(problem)}). Or save the sheet as CSV in UTF-8.") from None


def _rows(path: Path, book: Any, chosen: Mapping[str, str]) -> Iterator[CaptionRow | Reject]:
    sheet, names, columns = _sheet(path, book, chosen)
    for number, cells in enumerate(sheet.iter_rows(min_row=2, values_only=True), 2):
        if any(cell is not None for cell in cells):
            values = dict(zip(names, map(_text, cells), strict=False))
            yield table_row(f"row {number}", columns, values)


def _sheet(path: Path, book: Any, chosen: Mapping[str, str]) -> tuple[Any, list[str], TableColumns]:
    """The first sheet that has the columns, its columns' names, and the columns.

    Raises:
        InputError: There is none; lists the columns of the first sheet.
    """
    first: list[str] | None = None
    for sheet in book.worksheets:
        header = next(sheet.iter_rows(max_row=1, values_only=True), ())
        names = [str(_text(cell) or "").strip() for cell in header]
        if set(chosen.values()) <= set(names) and (columns := find_columns(path, names, chosen)):
            return sheet, names, columns
        first = names if first is None else first
    if chosen and first is not None:
        find_columns(path, first, chosen)
    raise columns_error(path, first or [])


def _text(cell: Any) -> Any:
    """A cell as the table shows it: a file name such as 1000268201 may be stored as a number."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell) if isinstance(cell, int | float) and not isinstance(cell, bool) else cell


def _matches(file: CaptionInput) -> bool:
    if not file.beginning.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(file.path) as archive:
            return WORKBOOK in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


EXCEL = CaptionFormat(
    description="a workbook of Excel (.xlsx) with such a first line",
    matches=_matches,
    read=lambda file: read_excel(file.path, file.columns),
)
