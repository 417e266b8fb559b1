import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.captions.coco import coco_file
from pipeline.captions.karpathy import karpathy_file
from pipeline.captions.records import Caption, CaptionedImage, CaptionFile, ListedImage, Row, gather
from shards.errors import InputError
from shards.json_files import read_json
from shards.rejects import Reject


def read_coco(path: Path) -> tuple[list[CaptionedImage], list[Reject]]:
    found = coco_file(path, read_json(path, what="captions file"))
    return found.splits[None], found.rejects[None]


def read_karpathy(path: Path, *, restval: bool = True) -> CaptionFile:
    return karpathy_file(path, read_json(path, what="captions file"), restval=restval)


def coco(tmp_path: Path, images: Any, annotations: Any) -> Path:
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def test_records_keep_the_files_order_and_all_captions(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}]
    annotations = [{"id": i, "image_id": image, "caption": f"c{i}"} for i, image in enumerate([3, 7, 3, 7, 7])]
    records, rejects = read_coco(coco(tmp_path, images, annotations))
    assert [(r.image_id, r.file_name, [c.text for c in r.captions]) for r in records] == [
        (7, "b.jpg", ["c1", "c3", "c4"]),
        (3, "a.jpg", ["c0", "c2"]),
    ]
    assert rejects == []


def test_whatever_cannot_be_used_has_a_line(tmp_path: Path) -> None:
    images = [
        {"id": 1, "file_name": "ok.jpg"},
        {"id": 2, "file_name": "silent.jpg"},
        {"id": 3, "file_name": "../../etc/passwd"},
        {"id": 4, "file_name": "blank.jpg"},
        {"id": 1, "file_name": "again.jpg"},
    ]
    annotations = [
        {"id": 10, "image_id": 1, "caption": "fine"},
        {"id": 11, "image_id": 99, "caption": "of nothing"},
        {"id": 12, "image_id": 3, "caption": "outside"},
        {"id": 13, "image_id": 4, "caption": " \n"},
        {"id": 10, "image_id": 1, "caption": "same id"},
    ]
    records, rejects = read_coco(coco(tmp_path, images, annotations))
    assert [r.file_name for r in records] == ["ok.jpg"]
    assert sorted((r.file, r.reason) for r in rejects) == [
        ("../../etc/passwd", "path_escape"),
        ("again.jpg", "duplicate_image_id"),
        ("annotation 10", "duplicate_caption_id"),
        ("annotation 11", "caption_without_image"),
        ("blank.jpg", "empty_caption"),
        ("blank.jpg", "no_captions"),
        ("silent.jpg", "no_captions"),
    ]


def test_two_images_with_one_file_name_are_both_kept(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "x.jpg"}, {"id": 2, "file_name": "x.jpg"}]
    records, rejects = read_coco(coco(tmp_path, images, [{"id": i, "image_id": i, "caption": "c"} for i in (1, 2)]))
    assert [r.image_id for r in records] == [1, 2]
    assert rejects == []


def test_captions_that_no_file_could_hold_survive_in_part(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text('{"images": [{"id": 1, "file_name": "x"}], "annotations": [{"id": 1, "image_id": 1, "caption": "a\\ud800b\\u0000c\\nd"}]}')
    records, _ = read_coco(path)
    assert records[0].captions[0].text == "a?b c\nd"


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("[]", "list"),
        ("{}", '"images"'),
        ('{"images": []}', '"annotations"'),
        ('{"images": [3], "annotations": []}', r"images\[0\]"),
        ('{"images": [{"id": "1", "file_name": "x"}], "annotations": []}', r"images\[0\].id"),
        ('{"images": [{"id": 1e0, "file_name": "x"}], "annotations": []}', r"images\[0\].id"),
        ('{"images": [{"id": 99999999999999999999, "file_name": "x"}], "annotations": []}', r"images\[0\].id"),
        ('{"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": null}]}', r"annotations\[0\].caption"),
        ("<html>", "valid JSON"),
    ],
)
def test_what_is_no_coco_file_is_refused_by_name(tmp_path: Path, content: str, names: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"(?s)wrong\.json.*{names}"):
        read_coco(path)


def karpathy(tmp_path: Path, images: Any) -> Path:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"dataset": "tiny", "images": images}))
    return path


def listed(imgid: int, split: str = "train", raws: tuple[str, ...] = ("A dog.",), **more: Any) -> dict[str, Any]:
    return {"filename": f"{imgid}.jpg", "imgid": imgid, "split": split, "sentences": [{"raw": raw} for raw in raws]} | more


def test_a_split_files_images_keep_its_order_in_each_split(tmp_path: Path) -> None:
    found = read_karpathy(karpathy(tmp_path, [listed(4, "val"), listed(2, raws=("b", "c")), listed(9, "test"), listed(0, "val")]))
    assert {split: [(r.image_id, r.file_name) for r in records] for split, records in found.splits.items()} == {
        "val": [(4, "4.jpg"), (0, "0.jpg")],
        "train": [(2, "2.jpg")],
        "test": [(9, "9.jpg")],
    }
    # Without sentids captions are counted through the file.
    assert [(caption.id, caption.text) for caption in found.splits["train"][0].captions] == [(1, "b"), (2, "c")]
    assert [image.imgid for image in found.listed] == [4, 2, 9, 0]
    assert not any(found.rejects.values())


def test_restval_becomes_part_of_train_where_it_stands_or_stays_apart(tmp_path: Path) -> None:
    path = karpathy(tmp_path, [listed(0), listed(1, "restval"), listed(2), listed(3, "restval")])
    assert [record.image_id for record in read_karpathy(path).splits["train"]] == [0, 1, 2, 3]
    apart = read_karpathy(path, restval=False).splits
    assert {split: [record.image_id for record in records] for split, records in apart.items()} == {"train": [0, 2], "restval": [1, 3]}


def test_ids_and_places_of_coco_are_taken_where_the_split_file_has_them(tmp_path: Path) -> None:
    sentences = [{"raw": "A dog.", "sentid": 700, "tokens": ["a", "dog"], "imgid": 0}, {"raw": "A cat.", "sentid": 12}]
    image = {"filename": "COCO_val2014_42.jpg", "filepath": "val2014", "imgid": 0, "cocoid": 42, "split": "val", "sentences": sentences}
    found = read_karpathy(karpathy(tmp_path, [image]))
    assert found.splits["val"] == [
        CaptionedImage(image_id=42, file_name="val2014/COCO_val2014_42.jpg", captions=(Caption(id=700, text="A dog."), Caption(id=12, text="A cat.")))
    ]
    assert found.listed == (ListedImage(image_id=42, imgid=0, file_name="val2014/COCO_val2014_42.jpg"),)


def test_whatever_of_a_split_file_cannot_be_used_has_a_line_in_its_split(tmp_path: Path) -> None:
    twice = [{"raw": "a", "sentid": 1}, {"raw": "b", "sentid": 1}]
    images = [
        listed(0, sentences=twice),
        listed(1, "val", sentences=[{"raw": " \n", "sentid": 2}, {"raw": "ok", "sentid": 3}]),
        listed(2, "val", sentences=[]),
        listed(0, "val", sentences=[{"raw": "again", "sentid": 4}]),
        listed(5, filename="../../etc/passwd", sentences=[{"raw": "c", "sentid": 5}]),
        listed(6, cocoid=1, sentences=[{"raw": "d", "sentid": 6}]),
    ]
    found = read_karpathy(karpathy(tmp_path, images))
    assert {split: [record.image_id for record in records] for split, records in found.splits.items()} == {"train": [0], "val": [1]}
    assert {split: [(reject.file, reject.reason) for reject in rejects] for split, rejects in found.rejects.items()} == {
        "train": [("sentence 1", "duplicate_caption_id"), ("../../etc/passwd", "path_escape"), ("6.jpg", "duplicate_image_id")],
        "val": [("1.jpg", "empty_caption"), ("2.jpg", "no_captions"), ("0.jpg", "duplicate_image_id")],
    }
    # Features of an image that cannot be used belong to it all the same.
    assert [image.imgid for image in found.listed] == [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (None, '"images"'),
        ([3], r"images\[0\].filename"),
        ([{"imgid": 0, "split": "train", "sentences": []}], r"images\[0\].filename"),
        ([listed(0), listed(1) | {"imgid": "1"}], r"images\[1\].imgid should be of type int, found '1'"),
        ([listed(0, cocoid=True)], r"images\[0\].cocoid"),
        ([listed(0, filepath=3)], r"images\[0\].filepath"),
        ([listed(0, sentences=None)], r"images\[0\].sentences"),
        ([listed(0, sentences=["A dog."])], r"images\[0\].sentences\[0\].raw should be of type str, found 'A dog.'"),
        ([listed(0, sentences=[{"raw": "a", "sentid": 1.5}])], r"images\[0\].sentences\[0\].sentid"),
        ([listed(0, "../up")], r"images\[0\].split is '../up'"),
    ],
)
def test_what_is_no_split_file_is_refused_by_name(tmp_path: Path, images: Any, names: str) -> None:
    with pytest.raises(InputError, match=rf"dataset\.json: .*{names}"):
        read_karpathy(karpathy(tmp_path, images))


def test_rows_without_ids_are_gathered_by_image_and_counted() -> None:
    rows: list[Row | Reject] = [
        Row(file_name="b.jpg", captions=("One", " ", "Two")),
        Reject(file="line 2", reason="malformed_row", message="x"),
        Row(file_name="mute.jpg", captions=()),
        Row(file_name="a.jpg", captions=("Three",)),
        Row(file_name="b.jpg", captions=("Four",)),
    ]
    found = gather(rows)
    assert found.splits == {
        None: [
            CaptionedImage(
                image_id=0, file_name="b.jpg", captions=(Caption(id=0, text="One"), Caption(id=2, text="Two"), Caption(id=4, text="Four"))
            ),
            CaptionedImage(image_id=2, file_name="a.jpg", captions=(Caption(id=3, text="Three"),)),
        ]
    }
    assert [(reject.file, reject.reason) for reject in found.rejects[None]] == [
        ("b.jpg", "empty_caption"),
        ("line 2", "malformed_row"),
        ("mute.jpg", "no_captions"),
    ]
    assert [(image.image_id, image.imgid, image.file_name) for image in found.listed] == [(0, 0, "b.jpg"), (1, 1, "mute.jpg"), (2, 2, "a.jpg")]


def test_rows_of_one_image_in_two_splits_stay_with_the_first() -> None:
    found = gather([Row(file_name="a.jpg", captions=("A",), split="val"), Row(file_name="a.jpg", captions=("B", "C"), split="train")])
    assert {split: [record.file_name for record in records] for split, records in found.splits.items()} == {"val": ["a.jpg"]}
    assert [(reject.file, reject.reason) for reject in found.rejects["train"]] == [("a.jpg", "other_split")]
