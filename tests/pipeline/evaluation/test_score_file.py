import json
from pathlib import Path
from typing import Any

import pytest

from model.decoding import ScoredCaption
from pipeline.evaluation.score_file import Interval, ScoredImage, ScoreFile, read_scores, write_scores
from shards.errors import DamageError, InputError, MismatchError

IMAGE = ScoredImage(
    image_id=7,
    file_name="ümlaut.jpg",
    caption="a dog",
    references=("the dog", "a dog \ud800"),
    scores={"cider": 0.25},
    alternatives=(ScoredCaption(caption="a dog", score=-1.5), ScoredCaption(caption="dogs", score=-2.0)),
)
SCORES = ScoreFile(
    split="val",
    made_by={"command": "c", "decoding": {"beam": 2}},
    scores={"cider": Interval(value=0.25, low=0.1, high=0.5)},
    images=(IMAGE,),
    notes=("n",),
)


def damaged(path: Path, *keys: str | int, value: Any) -> Path:
    """A score file with one value replaced."""
    write_scores(path, SCORES)
    content: Any = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))
    return path


def test_a_score_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.json", SCORES)
    assert read_scores(tmp_path / "s.json") == SCORES


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("notes",), "no METEOR here"),
        (("images",), ""),
        (("images",), {"7": {}}),
        (("images", 0, "references"), "the dog"),
        (("images", 0, "references"), {"the dog": 1}),
        (("images", 0, "alternatives"), ""),
        (("images", 0, "caption"), 7),
        (("images", 0, "caption"), None),
        (("images", 0, "image_id"), 1e999),
        (("images", 0, "image_id"), "seven"),
        (("images", 0, "scores", "cider"), 10**400),
        (("images", 0, "alternatives", 0, "score"), -(10**400)),
        (("scores", "cider", "low"), 10**400),
        (("scores", "cider", "middle"), 0.2),
        (("scores",), ["cider"]),
        (("made_by",), "evaluate"),
        (("split",), 1),
    ],
)
def test_a_value_of_the_wrong_type_is_damage_that_names_the_file(tmp_path: Path, keys: tuple[str | int, ...], value: Any) -> None:
    path = damaged(tmp_path / "s.json", *keys, value=value)
    with pytest.raises(DamageError, match=r"s\.json: not a score file .*python cli\.py evaluate"):
        read_scores(path)


def test_another_version_and_a_missing_file_are_named_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="format version 2"):
        read_scores(damaged(tmp_path / "s.json", "format_version", value=2))
    with pytest.raises(InputError, match=r"none\.json: no such score file.*evaluate"):
        read_scores(tmp_path / "none.json")
