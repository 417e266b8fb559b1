import builtins
import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.captions.read import CaptionSource, read_captions
from pipeline.captions.records import CaptionFile, unusable_caption
from pipeline.captions.tables import find_columns, read_delimited, read_json_lines, read_table_file
from shards.errors import InputError

Texts = dict[str | None, dict[str, list[str]]]


def read(path: Path, **columns: str) -> CaptionFile:
    return read_captions(CaptionSource(paths=(path,), columns=columns))


def texts(found: CaptionFile) -> Texts:
    return {split: {record.file_name: [c.text for c in record.captions] for record in records} for split, records in found.splits.items()}


def reasons(found: CaptionFile) -> list[tuple[str | None, str, str]]:
    return [(split, reject.file, reject.reason) for split, rejects in found.rejects.items() for reject in rejects]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        # Kaggle's form of Flickr8k
        (
            "captions.txt",
            'image,caption\r\n1.jpg,"A dog , ""Rex"" ."\r\n2.jpg,Two\r\n1.jpg,Again\r\n',
            {"1.jpg": ['A dog , "Rex" .', "Again"], "2.jpg": ["Two"]},
        ),
        ("bom.csv", "\ufeffimage,caption\na.jpg,One\n", {"a.jpg": ["One"]}),
        # Kaggle's form of Flickr30k
        (
            "results.csv",
            'image_name| comment_number| comment\n1.jpg| 0| Two "young guys" , one, more .\n',
            {"1.jpg": ['Two "young guys" , one, more .']},
        ),
        ("a.tsv", "path\ttext\nx/1.jpg\tOne, two\n", {"x/1.jpg": ["One, two"]}),
        ("semicolons.csv", "Filename;Caption\n1.jpg;Eins\n", {"1.jpg": ["Eins"]}),
        ("lists.csv", 'raw,filename\n"[""One."", ""Two.""]",1.jpg\n[sic],2.jpg\n', {"1.jpg": ["One.", "Two."], "2.jpg": ["[sic]"]}),
        ("several.csv", "image,caption_0,caption_1\n1.jpg,One,Two\n", {"1.jpg": ["One", "Two"]}),
        ("breaks.csv", 'image,caption\n1.jpg,"One\nline"\n', {"1.jpg": ["One\nline"]}),
        ("a.jsonl", '{"file_name": "1.jpg", "text": "One"}\n\n{"file_name": "1.jpg", "text": "Two"}\n', {"1.jpg": ["One", "Two"]}),
        ("metadata.jsonl", '{"image": "1.jpg", "captions": ["One", "Two"]}\n', {"1.jpg": ["One", "Two"]}),
        (
            "annotation.json",
            '[\n {"image": "1.jpg", "caption": ["One", "Two"]},\n {"image": "2.jpg", "caption": "Three"}]',
            {"1.jpg": ["One", "Two"], "2.jpg": ["Three"]},
        ),
    ],
)
def test_tables_are_read_by_their_usual_column_names(tmp_path: Path, name: str, content: str, wanted: dict[str, list[str]]) -> None:
    (tmp_path / name).write_bytes(content.encode())
    found = read(tmp_path / name)
    assert texts(found) == {None: wanted}
    assert [record.image_id for record in found.splits[None]] == list(range(len(wanted)))


def test_a_split_column_assigns_rows_to_splits_and_validation_is_val(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("image,caption,split\n1.jpg,a,train\n2.jpg,b,validation\n3.jpg,c,test\n4.jpg,d,\n5.jpg,e,no/split\n1.jpg,f,test\n2.jpg,g,dev\n")
    found = read(path)
    assert texts(found) == {"train": {"1.jpg": ["a"]}, "val": {"2.jpg": ["b", "g"]}, "test": {"3.jpg": ["c"]}}
    assert set(reasons(found)) == {(None, "4.jpg", "in_no_split"), (None, "5.jpg", "in_no_split"), ("test", "1.jpg", "other_split")}


def test_columns_can_be_named_and_an_unknown_name_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("image,photo,alt,caption,part\n0,1.jpg,One,no,train\n")
    assert texts(read(path, image="photo", caption="alt", split="part")) == {"train": {"1.jpg": ["One"]}}
    with pytest.raises(
        InputError, match=r"a\.csv: `column` caption=Alt: the table has no such column\. Its columns are: image, photo, alt, caption, part\."
    ):
        read(path, caption="Alt")
    path.write_text("photo,alt\n1.jpg,One\n")
    assert texts(read(path, image="photo", caption="alt")) == {None: {"1.jpg": ["One"]}}
    with pytest.raises(InputError, match=r"`column` image=NAME"):
        read(path)


def test_karpathys_folder_and_file_name_columns_become_one_name() -> None:
    columns = find_columns(Path("x"), ["filepath", "sentids", "filename", "split", "sentences"], {})
    assert columns is not None
    assert (columns.folder, columns.image, columns.captions, columns.split) == ("filepath", "filename", ("sentences",), "split")


def test_rows_that_cannot_be_used_are_rejects_that_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("image,caption\n1.jpg,fine\n2.jpg\n,nameless\n3.jpg,a,b\n4.jpg,\n/etc/passwd,x\n")
    wanted = [
        ("line 3", "malformed_row"),
        ("line 4", "malformed_row"),
        ("line 5", "malformed_row"),
        ("4.jpg", "empty_caption"),
        ("4.jpg", "no_captions"),
    ]
    assert reasons(read(path)) == [(None, *each) for each in [*wanted, ("/etc/passwd", "path_escape")]]
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"image": "1.jpg", "caption": "fine"}\n{"image": 7, "caption": "x"}\n{"image": "2.jpg", "caption": 7}\n[1]\n{"image": "3.jpg"}\n'
    )
    wanted = [
        ("line 2", "malformed_row"),
        ("line 3", "malformed_row"),
        ("line 4", "malformed_row"),
        ("3.jpg", "empty_caption"),
        ("3.jpg", "no_captions"),
    ]
    assert reasons(read(path)) == [(None, *each) for each in wanted]


@pytest.mark.parametrize("as_list", [False, True])
def test_objects_without_a_caption_are_rejects_wherever_they_are(tmp_path: Path, as_list: bool) -> None:
    objects = [{"image": "1.jpg"}, {"image": "2.jpg", "caption": "fine"}, {"image": "2.jpg", "caption": []}, {"caption": "lost"}]
    path = tmp_path / "a"
    path.write_text(json.dumps(objects) if as_list else "\n".join(map(json.dumps, objects)))
    found = read(path)
    assert texts(found) == {None: {"2.jpg": ["fine"]}}
    last = "entry 3" if as_list else "line 4"
    wanted = [("1.jpg", "empty_caption"), ("2.jpg", "empty_caption"), (last, "malformed_row"), ("1.jpg", "no_captions")]
    assert reasons(found) == [(None, *each) for each in wanted]
    assert texts(read(path, caption="caption")) == texts(found)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b'image,caption\n1.jpg,"never ends\n2.jpg,x\n', r"a\.csv: line \d: not a row of a table"),
        ("a.csv", b"image,caption\n1.jpg,ok\n2.jpg,caf\xe9\n", r"a\.csv: line 3 is not UTF-8 \(byte 0xe9\)"),
        ("a.csv", b"image,caption\n1.jpg," + b"x" * 200_000, "field larger than field limit"),
        ("a.jsonl", b'{"image": "1.jpg", "caption": "a"}\n{"image": \n', r"a\.jsonl: line 2 is not JSON"),
        ("a.jsonl", b'{"image": "1.jpg", "caption": "a"}\n{"image": "\xff"}\n', r"a\.jsonl: line 2 is not UTF-8"),
        ("a.jsonl", b'{"url": "1.jpg", "alt": "a"}\n', r"a\.jsonl: no column of images, or none of captions.*Its columns are: url, alt"),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet: not a complete Parquet or Arrow file"),
    ],
)
def test_a_damaged_table_is_an_error_that_names_the_line(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=says):
        read(tmp_path / name)


def parquet(tmp_path: Path, columns: Mapping[str, Any]) -> Path:
    pq.write_table(pa.table(dict(columns)), tmp_path / "a.parquet", row_group_size=2)
    return tmp_path / "a.parquet"


def test_parquet_with_rows_lists_and_hugging_faces_images(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"image": ["1.jpg", "2.jpg", "1.jpg"], "caption": ["a", None, "c"], "split": ["train", "train", "train"]})
    assert texts(read(path)) == {"train": {"1.jpg": ["a", "c"]}}
    images = [{"bytes": b"JPEG", "path": "1.jpg"}, {"bytes": b"JPEG", "path": None}, {"bytes": None, "path": "3.jpg"}]
    sentences = [[{"raw": "One", "sentid": 1}, {"raw": "Two", "sentid": 2}], [{"raw": "Lost", "sentid": 3}], [{"raw": "Three", "sentid": 4}]]
    path = parquet(tmp_path, {"image": images, "sentences": sentences, "other": [1.5, 2.5, 3.5]})
    found = read_captions(CaptionSource(paths=(path,), image_files=tmp_path))
    assert texts(found) == {None: {"1.jpg": ["One", "Two"], "3.jpg": ["Three"]}}
    assert reasons(found) == [(None, "row 1", "malformed_row")]
    found = read(parquet(tmp_path, {"filepath": ["val2014"], "filename": ["1.jpg"], "sentences": [["One", "Two"]]}))
    assert texts(found) == {None: {"val2014/1.jpg": ["One", "Two"]}}


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path, {"image": ["1.jpg"], "caption": ["a"]})
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install '\.\[parquet\]'"):
        read_table_file(path, {})


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=20).filter(
    lambda text: unusable_caption(text, "", "") is None
)


@given(rows=st.lists(st.tuples(st.sampled_from(["a.jpg", "b.jpg", "c d.jpg"]), TEXT), min_size=1, max_size=8))
def test_csv_and_json_lines_written_by_python_are_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("tables")
    wanted: dict[str, list[str]] = {}
    for name, text in rows:
        if text not in wanted.setdefault(name, []):
            wanted[name].append(text)
    written = io.StringIO()
    csv.writer(written).writerows([("image", "caption"), *rows])
    (folder / "a.csv").write_bytes(written.getvalue().encode())
    (folder / "a.jsonl").write_text("".join(json.dumps({"image": name, "caption": text}) + "\n" for name, text in rows))
    by_csv, by_json = read_delimited(folder / "a.csv", ",", {}), read_json_lines(folder / "a.jsonl", {})
    if not any(text.startswith("[") for _, text in rows):
        assert texts(by_csv) == texts(by_json) == {None: wanted}
