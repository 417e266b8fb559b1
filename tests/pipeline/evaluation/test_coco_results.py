import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.coco_results import read_results, write_results
from shards.errors import InputError


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_results_are_read_in_the_order_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_results(path, [(7, "a dog"), (3, "ein Hündchen")])
    assert json.loads(path.read_text()) == [{"image_id": 7, "caption": "a dog"}, {"image_id": 3, "caption": "ein Hündchen"}]
    assert list(read_results(path, [3, 5, 7]).items()) == [(7, "a dog"), (3, "ein Hündchen")]


def test_additional_fields_are_allowed(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", [{"image_id": 7, "caption": "a dog", "id": 1, "score": 0.5}])
    assert read_results(path, [7]) == {7: "a dog"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", r"not a result file: it is not valid JSON.*A result file is a list"),
        ({"annotations": []}, r"the top level is a dict, not a list"),
        ([], r"the list is empty"),
        ([{"image_id": 7, "caption": "a"}, "a dog"], r"entry 1 is 'a dog', not an object"),
        ([{"caption": "a dog"}], r'entry 0 has no "image_id"'),
        ([{"image_id": 7}], r'entry 0 has no "caption"'),
        ([{"image_id": "7", "caption": "a"}], r"has 1 entry with an image_id that is not an integer \(entry 0: '7'\)\. Write it without quotes"),
        ([{"image_id": 7.0, "caption": "a"}], r"not an integer \(entry 0: 7\.0\)"),
        ([{"image_id": True, "caption": "a"}], r"not an integer \(entry 0: True\)"),
        ([{"image_id": [[1] * 999], "caption": "a"}], r"not an integer \(entry 0: \[\[1, .*\.\.\.\)"),
        ([{"image_id": 7, "caption": None}], r"the caption of image 7 is None, not a string"),
        (
            [{"image_id": 7, "caption": "a"}, {"image_id": 7, "caption": "b"}],
            r"has 1 entry of an image that an earlier entry has \(entry 1: 7\)\. Keep one",
        ),
        (
            [{"image_id": 8, "caption": "a"}],
            r"has 1 entry of an image that is not among the references' images \(entry 0: 8\)\. Give the `references`",
        ),
    ],
)
def test_an_invalid_file_is_refused_and_the_message_names_the_entry_and_the_next_step(tmp_path: Path, content: Any, says: str) -> None:
    path = written(tmp_path / "r.json", content)
    with pytest.raises(InputError, match=says) as caught:
        read_results(path, [7])
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_wrong_ids_of_every_kind_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    ids = [42, "42", 42, 9, "7", 7, 8, 7.5, 10, None, 11]
    path = written(tmp_path / "r.json", [{"image_id": image_id, "caption": "a dog"} for image_id in ids])
    with pytest.raises(InputError) as caught:
        read_results(path, [7, 42])
    assert str(caught.value) == (
        f"{path}: has 4 entries with an image_id that is not an integer (entry 1: '42'; entry 4: '7'; entry 7: 7.5). Write it without quotes or "
        "a decimal point. Also 1 entry of an image that an earlier entry has (entry 2: 42). Keep one entry for each image. Also 4 entries of "
        "an image that is not among the references' images (entry 3: 9; entry 6: 8; entry 8: 10). Give the `references` that these captions were "
        "made for, or remove them."
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: no such file \(expected a result file\)"):
        read_results(tmp_path / "none.json", [7])


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", '[{"image_id": 7, "caption": "a \\ud800 dog"}]')
    assert read_results(path, [7]) == {7: "a ? dog"}
