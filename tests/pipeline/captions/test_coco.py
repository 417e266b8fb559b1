import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.captions.coco import coco_file
from pipeline.captions.records import CaptionedImage
from shards.errors import InputError
from shards.json_files import read_json
from shards.rejects import Reject


def read_coco(path: Path) -> tuple[list[CaptionedImage], list[Reject]]:
    found = coco_file(path, read_json(path, what="captions file"))
    return found.splits[None], found.rejects[None]


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


def test_everything_that_cannot_be_used_is_a_reject(tmp_path: Path) -> None:
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


def test_characters_that_no_file_can_hold_are_replaced(tmp_path: Path) -> None:
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
def test_a_malformed_coco_file_is_refused_and_the_place_is_named(tmp_path: Path, content: str, names: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(InputError, match=rf"(?s)wrong\.json.*{names}"):
        read_coco(path)
