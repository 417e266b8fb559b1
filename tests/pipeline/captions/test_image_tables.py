"""Tables that hold the images themselves."""

from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pytest

from pipeline.captions.image_tables import stored_bytes
from pipeline.captions.locations import split_of_table
from pipeline.captions.read import CaptionSource, read_captions
from pipeline.captions.records import CaptionFile
from pipeline.captions.table_files import open_table
from shards.errors import InputError
from tests.image_tables import image_rows, picture, write_table


def read(*paths: Path, **options: Any) -> CaptionFile:
    return read_captions(CaptionSource(paths=paths, **options))


def texts(found: CaptionFile) -> dict[str | None, dict[str, list[str]]]:
    return {split: {record.file_name: [c.text for c in record.captions] for record in records} for split, records in found.splits.items()}


def images(found: CaptionFile) -> dict[str, bytes | None]:
    """The bytes of every image by its name."""
    stored = {}
    for records in found.splits.values():
        for record in records:
            assert record.stored is not None
            with open_table(record.stored.table) as table:
                data = next(stored_bytes(table, record.stored.column, [record.stored.row]))
                stored[record.file_name] = None if data is None else bytes(data)
    return stored


def hub_dataset(columns: dict[str, list[Any]]) -> Any:
    """A dataset whose column of images has the type that the Hub's datasets have."""
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_what_datasets_wrote_is_read_with_names_captions_and_the_bytes_of_each_image(tmp_path: Path, form: str) -> None:
    dataset = hub_dataset(image_rows(5))
    if form == "parquet":
        dataset.to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
        found = read(tmp_path / "data/train-*.parquet")
    else:
        datasets.DatasetDict({"train": dataset}).save_to_disk(str(tmp_path / "data"))
        found = read(tmp_path / "data")
    assert texts(found) == {"train": {f"{n}.jpg": [f"picture {n}", f"again picture {n}"] for n in range(5)}}
    assert images(found) == {f"{n}.jpg": picture(n) for n in range(5)}


@pytest.mark.parametrize(
    "captions",
    [
        {"text": ["One.", "Two."]},
        {"caption_0": ["One.", "Two."], "caption_1": ["1", "2"]},
        {"sentences": [[{"raw": "One."}], [{"raw": "Two."}]]},
    ],
)
def test_captions_are_a_text_a_list_or_numbered_columns(tmp_path: Path, captions: dict[str, list[Any]]) -> None:
    write_table(tmp_path / "a.parquet", {"image": image_rows(2)["image"], **captions})
    assert [record[0] for record in texts(read(tmp_path / "a.parquet"))[None].values()] == ["One.", "Two."]


def test_splits_come_from_file_names_unless_a_column_names_them(tmp_path: Path) -> None:
    for number, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001")):
        write_table(tmp_path / f"{name}.parquet", image_rows(1, first=number))
    found = texts(read(tmp_path))
    assert {split: list(names) for split, names in found.items()} == {"test": ["3.jpg"], "train": ["0.jpg", "1.jpg"], "val": ["2.jpg"]}
    write_table(tmp_path / "flickr/TEST-00000-of-00001.parquet", {**image_rows(3), "split": ["train", "val", "test"]})
    assert list(texts(read(tmp_path / "flickr"))) == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("default/train/0000.parquet", "train"),
        ("flickr8k-train-00000-of-00002.arrow", "train"),
        ("valid/data-00000-of-00001.arrow", "val"),
        ("data-00000-of-00001.arrow", None),
        ("restval-00000-of-00001.parquet", "restval"),
        ("test2014.parquet", "test"),
        ("train_val.parquet", None),
        ("constrained.parquet", None),
    ],
)
def test_the_split_that_a_file_name_tells(name: str, split: str | None) -> None:
    assert split_of_table(name) == split


def test_rows_of_one_name_are_one_image_only_if_their_bytes_are_the_same(tmp_path: Path) -> None:
    data = [{"bytes": picture(number), "path": "image.jpg"} for number in (1, 1, 2)]
    write_table(tmp_path / "a-00000-of-00002.parquet", {"image": data, "caption": ["a", "b", "c"]})
    write_table(tmp_path / "a-00001-of-00002.parquet", {"image": data[:1], "caption": ["d"]})
    found = read(tmp_path / "*.parquet")
    assert texts(found) == {"a": {"image.jpg": ["a", "b", "d"], "a-00000-of-00002.parquet/2/image.jpg": ["c"]}}
    assert images(found) == {"image.jpg": picture(1), "a-00000-of-00002.parquet/2/image.jpg": picture(2)}


def test_images_without_a_name_are_named_after_their_row_and_told_apart_by_their_bytes(tmp_path: Path) -> None:
    data = [picture(1), picture(2), picture(1), None, None]
    write_table(tmp_path / "a.parquet", {"jpg": pa.array(data, pa.large_binary()), "text": ["a", "b", "c", "d", "e"]})
    found = read(tmp_path / "a.parquet")
    assert texts(found) == {None: {"a.parquet/0": ["a", "c"], "a.parquet/1": ["b"], "a.parquet/3": ["d"], "a.parquet/4": ["e"]}}
    assert images(found) == {"a.parquet/0": picture(1), "a.parquet/1": picture(2), "a.parquet/3": None, "a.parquet/4": None}


def test_a_column_of_file_names_names_the_images_and_absolute_names_are_shortened(tmp_path: Path) -> None:
    rows = image_rows(2)
    write_table(tmp_path / "a.parquet", {**rows, "filename": ["x.jpg", "y.jpg"]})
    assert list(texts(read(tmp_path / "a.parquet"))[None]) == ["x.jpg", "y.jpg"]
    rows["image"] = [{"bytes": picture(1), "path": "/home/me/../a.jpg"}, {"bytes": picture(2), "path": "C:\\photos\\b.jpg"}]
    write_table(tmp_path / "a.parquet", rows)
    assert list(texts(read(tmp_path / "a.parquet"))[None]) == ["home/me/a.jpg", "photos/b.jpg"]


def test_other_captions_files_add_to_the_images_of_a_table(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", image_rows(2))
    (tmp_path / "more.csv").write_text("image,caption\n1.jpg,more\n")
    found = read(tmp_path / "a.parquet", tmp_path / "more.csv")
    assert texts(found)[None]["1.jpg"] == ["picture 1", "again picture 1", "more"]
    assert set(images(found)) == {"0.jpg", "1.jpg"}


def test_rows_that_cannot_be_used_are_rejects_that_name_the_table_and_the_row(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"image": image_rows(3)["image"], "caption": [["a"], [], None], "split": ["train", "train", "a/b"]})
    rejects = [(reject.file, reject.reason) for of_split in read(tmp_path / "a.parquet").rejects.values() for reject in of_split]
    assert rejects == [("1.jpg", "empty_caption"), ("1.jpg", "no_captions"), ("2.jpg", "in_no_split")]
    write_table(tmp_path / "a.parquet", {"image": image_rows(1)["image"], "caption": [7]})
    (reject,) = read(tmp_path / "a.parquet").rejects[None]
    assert (reject.file, reject.reason) == ("a.parquet row 0", "malformed_row")


def test_a_table_without_captions_lists_its_columns_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"image": image_rows(2)["image"], "label": [1, 2]})
    with pytest.raises(InputError, match=r"a\.parquet: no column of images, or none of captions, has a usual name\. Its columns are: image, label"):
        read(tmp_path / "a.parquet")
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"a\.parquet: not a complete Parquet or Arrow file"):
        read(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"no file matches this pattern"):
        read(tmp_path / "b*.parquet")


def test_an_arrow_file_with_offsets_that_lead_out_of_it_is_refused(tmp_path: Path) -> None:
    table = pa.record_batch({"image": pa.array([b"abcde", b"f"]), "caption": ["a", "b"]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_batch(table)
    content = (tmp_path / "a.arrow").read_bytes()
    offsets = b"\0\0\0\0\x05\0\0\0\x06\0\0\0"
    assert content.count(offsets) == 1
    (tmp_path / "a.arrow").write_bytes(content.replace(offsets, b"\0\0\0\0\x05\0\0\0\x06\0\0\x70"))
    with pytest.raises(InputError, match=r"a\.arrow: not a complete Parquet or Arrow file"):
        read(tmp_path / "a.arrow")


def test_tables_in_several_folders_are_not_mixed(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_table(tmp_path / folder / "train/0000.parquet", image_rows(1))
    with pytest.raises(InputError, match=r"has tables in several folders.*/one, .*/two"):
        read(tmp_path)
