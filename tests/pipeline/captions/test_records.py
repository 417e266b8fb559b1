from pipeline.captions.records import Caption, CaptionedImage, CaptionRow, file_of_rows
from shards.rejects import Reject


def test_rows_without_ids_are_grouped_by_image_and_numbered() -> None:
    rows: list[CaptionRow | Reject] = [
        CaptionRow(file_name="b.jpg", captions=("One", " ", "Two")),
        Reject(file="line 2", reason="malformed_row", message="x"),
        CaptionRow(file_name="mute.jpg", captions=()),
        CaptionRow(file_name="a.jpg", captions=("Three",)),
        CaptionRow(file_name="b.jpg", captions=("Four",)),
    ]
    found = file_of_rows(rows)
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


def test_an_image_with_rows_in_two_splits_belongs_to_the_first() -> None:
    found = file_of_rows(
        [CaptionRow(file_name="a.jpg", captions=("A",), split="val"), CaptionRow(file_name="a.jpg", captions=("B", "C"), split="train")]
    )
    assert {split: [record.file_name for record in records] for split, records in found.splits.items()} == {"val": ["a.jpg"]}
    assert [(reject.file, reject.reason) for reject in found.rejects["train"]] == [("a.jpg", "other_split")]
