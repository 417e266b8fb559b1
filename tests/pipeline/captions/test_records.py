import json
from pathlib import Path

import pytest

from pipeline.captions.read import CaptionSource, read_splits
from pipeline.captions.records import MAX_CAPTION_CHARACTERS, Caption, CaptionedImage, CaptionRow, file_of_rows, unusable_caption
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


@pytest.mark.parametrize("text", ["개가 달린다", "一只狗", "สุนัขวิ่ง", "कुत्ता", "كلب", "犬", "Hund!", "ä", "7", "٣", "½", "🐕 dog", "\u200bdog"])
def test_a_caption_with_a_letter_or_digit_of_any_script_has_words(text: str) -> None:
    assert unusable_caption(text, "a.jpg", "caption 1") is None


@pytest.mark.parametrize(
    "text", ["...", "?!", "_", "🐕", "👩\u200d👧", "🇩🇪", "\u200b", "\ufeff", "\u00ad", "\u3164", "\u2800", "。", "$ %", "\u0301"]
)
def test_a_caption_of_punctuation_emoji_or_invisible_characters_is_a_reject(text: str) -> None:
    reject = unusable_caption(text, "a.jpg", "caption 1")
    assert reject is not None
    assert (reject.file, reject.reason) == ("a.jpg", "caption_without_words")
    assert reject.message == f"caption 1 has no letters or digits: {text!a}"


@pytest.mark.parametrize("text", ["", " ", "\t\u00a0\u3000"])
def test_a_caption_of_white_space_is_empty(text: str) -> None:
    reject = unusable_caption(text, "a.jpg", "caption 1")
    assert reject is not None
    assert reject.reason == "empty_caption"


LONGEST, TOO_LONG = "é" * MAX_CAPTION_CHARACTERS, "é" * (MAX_CAPTION_CHARACTERS + 1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "coco.json",
            json.dumps(
                {
                    "images": [{"id": 1, "file_name": "a.jpg"}],
                    "annotations": [{"id": n, "image_id": 1, "caption": text} for n, text in enumerate((LONGEST, TOO_LONG, "short"))],
                }
            ),
        ),
        (
            "karpathy.json",
            json.dumps(
                {"images": [{"filename": "a.jpg", "imgid": 0, "split": "train", "sentences": [{"raw": t} for t in (LONGEST, TOO_LONG, "short")]}]}
            ),
        ),
        ("table.csv", f"image,caption\na.jpg,{LONGEST}\na.jpg,{TOO_LONG}\na.jpg,short\n"),
        ("lines.jsonl", "".join(json.dumps({"image": "a.jpg", "caption": text}, ensure_ascii=False) + "\n" for text in (LONGEST, TOO_LONG, "short"))),
        ("tokens.token", f"a.jpg#0\t{LONGEST}\na.jpg#1\t{TOO_LONG}\na.jpg#2\tshort\n"),
        ("a.txt", f"{LONGEST}\n{TOO_LONG}\nshort\n"),
    ],
)
def test_a_too_long_caption_is_rejected_in_every_format_and_the_others_stay(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "a.jpg").touch()
    [found] = read_splits(CaptionSource(paths=(tmp_path if name == "a.txt" else tmp_path / name,))).values()
    assert [[caption.text for caption in record.captions] for record in found.records] == [[LONGEST, "short"]]
    [reject] = found.rejects
    assert (reject.file, reject.reason) == ("a.jpg", "caption_too_long")
    assert "has 10001 characters, more than the limit of 10000" in reject.message
