import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.captions.karpathy import karpathy_file
from pipeline.captions.records import Caption, CaptionedImage, CaptionFile, ListedImage
from shards.errors import InputError
from shards.json_files import read_json


def read_karpathy(path: Path, *, restval: bool = True) -> CaptionFile:
    return karpathy_file(path, read_json(path, what="captions file"), restval=restval)


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
    # Without sentids captions are numbered through the file
    assert [(caption.id, caption.text) for caption in found.splits["train"][0].captions] == [(1, "b"), (2, "c")]
    assert [image.imgid for image in found.listed] == [4, 2, 9, 0]
    assert not any(found.rejects.values())


def test_restval_becomes_part_of_train_or_stays_a_split(tmp_path: Path) -> None:
    path = karpathy(tmp_path, [listed(0), listed(1, "restval"), listed(2), listed(3, "restval")])
    assert [record.image_id for record in read_karpathy(path).splits["train"]] == [0, 1, 2, 3]
    apart = read_karpathy(path, restval=False).splits
    assert {split: [record.image_id for record in records] for split, records in apart.items()} == {"train": [0, 2], "restval": [1, 3]}


def test_ids_and_folders_of_coco_are_used_if_the_split_file_has_them(tmp_path: Path) -> None:
    sentences = [{"raw": "A dog.", "sentid": 700, "tokens": ["a", "dog"], "imgid": 0}, {"raw": "A cat.", "sentid": 12}]
    image = {"filename": "COCO_val2014_42.jpg", "filepath": "val2014", "imgid": 0, "cocoid": 42, "split": "val", "sentences": sentences}
    found = read_karpathy(karpathy(tmp_path, [image]))
    assert found.splits["val"] == [
        CaptionedImage(image_id=42, file_name="val2014/COCO_val2014_42.jpg", captions=(Caption(id=700, text="A dog."), Caption(id=12, text="A cat.")))
    ]
    assert found.listed == (ListedImage(image_id=42, imgid=0, file_name="val2014/COCO_val2014_42.jpg"),)


def test_everything_in_a_split_file_that_cannot_be_used_is_a_reject_of_its_split(tmp_path: Path) -> None:
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
    # Images that cannot be used still have rows of features
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
def test_a_malformed_split_file_is_refused_and_the_place_is_named(tmp_path: Path, images: Any, names: str) -> None:
    with pytest.raises(InputError, match=rf"dataset\.json: .*{names}"):
        read_karpathy(karpathy(tmp_path, images))
