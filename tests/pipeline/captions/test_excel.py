"""Captions in Excel workbooks."""

import builtins
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from pipeline.captions import excel
from pipeline.captions.read import CaptionSource, read_captions
from shards.errors import InputError


def workbook(path: Path, *sheets: list[list[Any]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for number, rows in enumerate(sheets):
        sheet = book.create_sheet(f"Sheet {number}")
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def captions(path: Path, **columns: str) -> dict[str | None, dict[str, list[str]]]:
    found = read_captions(CaptionSource(paths=(path,), columns=columns))
    return {split: {record.file_name: [each.text for each in record.captions] for record in records} for split, records in found.splits.items()}


def test_a_workbook_is_read_as_a_table(tmp_path: Path) -> None:
    rows: list[list[Any]] = [
        ["image", "caption", "split"],
        ["a.jpg", "강아지", "train"],
        [None, None, None],
        ["b.jpg", 7, "validation"],
        [1000268201, "A dog.", "train"],
    ]
    path = workbook(tmp_path / "a.xlsx", rows)
    assert captions(path) == {"train": {"a.jpg": ["강아지"], "1000268201": ["A dog."]}, "val": {"b.jpg": ["7"]}}


def test_the_first_sheet_with_the_columns_is_read_and_else_the_columns_are_listed(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", [["notes"], ["x"]], [["Bild", "Caption"], ["a.jpg", "Ein Hund"]])
    assert captions(path, image="Bild") == {None: {"a.jpg": ["Ein Hund"]}}
    with pytest.raises(InputError, match=r"a\.xlsx: no column of images, or none of captions, has a usual name\. Its columns are: notes"):
        captions(path)
    with pytest.raises(InputError, match=r"a\.xlsx: `column` image=Foto: the table has no such column\. Its columns are: notes"):
        captions(path, image="Foto")


def test_a_damaged_or_huge_workbook_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "a.xlsx", [["image", "caption"], ["a.jpg", "A dog."]])
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content if "sheet" not in name else content[: len(content) // 2])
    with pytest.raises(InputError, match=r"b\.xlsx: not a complete Excel file"):
        captions(tmp_path / "b.xlsx")
    monkeypatch.setattr(excel, "MAX_UNPACKED_BYTES", 1000)
    with pytest.raises(InputError, match=r"a\.xlsx: has \d+ bytes when it is unpacked, more than the limit"):
        captions(path)


def test_without_openpyxl_the_error_says_what_to_install_or_to_save_as_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = workbook(tmp_path / "a.xlsx", [["image", "caption"], ["a.jpg", "A dog."]])
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("openpyxl"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"a\.xlsx: reading an Excel file requires openpyxl: pip install '\.\[excel\]'\. Or save the sheet as CSV"):
        captions(path)


@pytest.mark.parametrize(
    ("beginning", "says"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "is an old Excel file: save it as .xlsx"),
        (b"PK\x03\x04" + bytes(26) + b"mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "is an OpenDocument table: save it as .xlsx"),
        (b"PK\x03\x04" + bytes(60), "is compressed: unpack it first"),
    ],
)
def test_other_tables_say_how_to_save_them(tmp_path: Path, beginning: bytes, says: str) -> None:
    (tmp_path / "a.xls").write_bytes(beginning)
    with pytest.raises(InputError, match=rf"a\.xls: {says}"):
        captions(tmp_path / "a.xls")
