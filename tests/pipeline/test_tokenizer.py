import json
from pathlib import Path

import pytest

from pipeline.tokenizer import tokenize


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


def test_real_captions_give_tokens_without_spaces(data: Path) -> None:
    annotations = json.loads((data / "coco-captions" / "captions_val2017.json").read_text())["annotations"]
    for annotation in annotations[::25]:
        tokens = tokenize(annotation["caption"])
        assert tokens
        assert not any(any(c.isspace() for c in token) for token in tokens)
