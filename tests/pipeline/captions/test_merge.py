from hypothesis import given
from hypothesis import strategies as st

from pipeline.captions.merge import merge
from pipeline.captions.records import Caption, CaptionedImage, CaptionFile
from shards.rejects import Reject


def names(found: CaptionFile) -> dict[str | None, list[str]]:
    return {split: [record.file_name for record in records] for split, records in found.splits.items()}


def image(image_id: int, name: str, *captions: tuple[int, str]) -> CaptionedImage:
    return CaptionedImage(image_id=image_id, file_name=name, captions=tuple(Caption(id=number, text=text) for number, text in captions))


def one(split: str | None, *records: CaptionedImage, rejects: tuple[Reject, ...] = ()) -> CaptionFile:
    return CaptionFile(splits={split: list(records)}, rejects={split: list(rejects)}, listed=())


def test_files_are_merged_by_image_and_keep_the_ids_that_are_free() -> None:
    first = one(None, image(7, "a.jpg", (1, "A")), image(0, "b.jpg", (2, "B")))
    second = one(None, image(0, "b.jpg", (1, "B"), (9, "New")), image(7, "c.jpg", (2, "C")), image(3, "d.jpg", (5, "D")))
    found = merge([first, second])
    # 0, 3 and 7 are image ids in one of the files; 1, 2, 5 and 9 are caption ids
    assert found.splits == {
        None: [image(7, "a.jpg", (1, "A")), image(0, "b.jpg", (2, "B"), (9, "New")), image(1, "c.jpg", (0, "C")), image(3, "d.jpg", (5, "D"))]
    }
    assert [(reject.file, reject.reason) for reject in found.rejects[None]] == [("b.jpg", "duplicate_caption")]


def test_a_file_merged_with_itself_is_that_file() -> None:
    # Two entries with the same name in one file are two images
    file = one("train", image(1, "a.jpg", (1, "A"), (2, "A")), image(2, "a.jpg", (3, "B")))
    found = merge([file, file])
    assert found.splits == file.splits
    assert {reject.reason for reject in found.rejects["train"]} == {"duplicate_caption"}


def test_an_image_belongs_to_the_split_that_a_file_names_and_to_one_only() -> None:
    unnamed = one(None, image(0, "a.jpg", (0, "A")), image(1, "new.jpg", (1, "N")))
    named = CaptionFile(
        splits={"val": [image(0, "a.jpg", (0, "V"))], "train": [image(5, "b.jpg", (5, "T"))]}, rejects={"val": [], "train": []}, listed=()
    )
    other = one("test", image(9, "a.jpg", (9, "Leaks")))
    found = merge([unnamed, named, other])
    assert names(found) == {"train": ["new.jpg", "b.jpg"], "val": ["a.jpg"], "test": []}
    assert [caption.text for caption in found.splits["val"][0].captions] == ["A", "V"]
    assert [(reject.file, reject.reason) for reject in found.rejects["test"]] == [("a.jpg", "other_split")]


RECORDS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc"), st.sampled_from(["x", "y"])), max_size=5)


@given(files=st.lists(RECORDS, min_size=2, max_size=4))
def test_ids_are_unique_and_no_caption_is_lost_whatever_is_merged(files: list[list[tuple[int, str, str]]]) -> None:
    made = []
    for rows in files:
        unique = {number: (name, text) for number, name, text in rows}
        made.append(one(None, *(image(number, name, (number, text)) for number, (name, text) in unique.items())))
    found = merge(made)
    records = found.splits[None]
    assert len({record.image_id for record in records}) == len(records)
    ids = [caption.id for record in records for caption in record.captions]
    assert len(set(ids)) == len(ids)
    said = {(record.file_name, caption.text) for record in records for caption in record.captions}
    assert said == {(record.file_name, caption.text) for file in made for record in file.splits[None] for caption in record.captions}
    assert len(ids) + len(found.rejects[None]) == sum(len(file.splits[None]) for file in made)
