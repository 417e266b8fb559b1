import json
from pathlib import Path
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import word_tokenize

from pipeline.captions import english
from pipeline.captions.english import tokenize

WORDS = ["a", "dog", "3", "1000", "x-ray", "cannot", "Cannot", "gimme", "gonna", "gotta", "lemme", "wanna", "more", "don", "t", "s", "d", "ye", "tis"]
MARKS = [".", "..", ",", ", ", ". ", "'", "-", "--", ":", "n't", "'s", "%", "\n", '"', "é", "ſ", "İ"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog runs.", ["a", "dog", "runs", "."]),
        ("A dog. A cat.", ["a", "dog.", "a", "cat", "."]),
        ('He said "no", didn\'t he?', ["he", "said", "``", "no", "''", ",", "did", "n't", "he", "?"]),
        ("  two\nlines\t", ["two", "lines"]),
        ("", []),
        ("ÜBER 3.5 m (wide)", ["über", "3.5", "m", "(", "wide", ")"]),
    ],
)
def test_the_documented_rule(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def by_nltk(text: str) -> list[str]:
    tokens: list[str] = word_tokenize(normalize("NFC", normalize("NFC", text).lower()), preserve_line=True)
    return tokens


def test_real_captions_are_tokenized_as_by_nltk(data: Path) -> None:
    annotations = json.loads((data / "coco-captions" / "captions_val2017.json").read_text())["annotations"]
    assert len(annotations) == 25_014
    assert [a["caption"] for a in annotations if tokenize(a["caption"]) != by_nltk(a["caption"])] == []


def test_nearly_all_real_captions_take_the_fast_path(data: Path) -> None:
    annotations = json.loads((data / "coco-captions" / "captions_val2017.json").read_text())["annotations"]
    plain = sum(english._PLAIN.fullmatch(a["caption"].lower()) is not None for a in annotations)
    assert plain / len(annotations) > 0.95


@settings(max_examples=2000, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, *MARKS, " ", " ", " "]), max_size=12).map("".join))
def test_captions_made_of_awkward_pieces_are_tokenized_as_by_nltk(text: str) -> None:
    assert tokenize(text) == by_nltk(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_tokenized_as_by_nltk(text: str) -> None:
    assert tokenize(text) == by_nltk(text)
