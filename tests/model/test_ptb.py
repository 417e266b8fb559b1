import json
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.ptb import PUNCTUATION, ptb_tokens
from tests import ROOT


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man's dog isn't here; it can't.", "a man 's dog is n't here it ca n't"),
        ("They cannot, gonna, wanna, gotta, lemme, gimme.", "they can not gon na wan na got ta lem me gim me"),
        ("'Tis the boys' toy, 'em all", "'t is the boys toy 'em all"),
        ("Rock 'n' roll at 5 o'clock with O'Brien, y'all", "rock 'n' roll at 5 o'clock with o'brien y' all"),
        ("the ’90s, a dog’s “big day”", "the ’90s a dog 's big day"),
        ("In St. Louis, Mo. on Main St. at 5 p.m. in the U.S. vs. Dr. Who etc.", None),
        ("A dog. A cat... Two cats.. done!", "a dog a cat two cats done"),
        ("A street.And a stop", "a street.and a stop"),
        ("a grade of B. The dog", "a grade of b the dog"),
        ("it fits, inc., so", "it fits inc. so"),
        ("(a dog) [b] {c}", "-lrb- a dog -rrb- -lsb- b -rsb- -lcb- c -rcb-"),
        ("black/white 24/7 1/2 and/or a/b/c/d", "black/white 24/7 1/2 and/or a/b/c / d"),
        ("a 3-foot-tall - well -- tall man", "a 3-foot-tall well tall man"),
        ("$5.50, €6, £7, 8¢, 50% off #1", "$ 5.50 $ 6 # 7 8 cents 50 % off # 1"),
        ("10,000 at 10:30 on 11/12/2014, .5 or -5", "10,000 at 10:30 on 11/12/2014 .5 or -5"),
        ("R&B at AT&T, a & b, a&b, C++ and c#", "r&b at at&t a & b a & b c++ and c#"),
        ("naïve café, 日本語, ½ cup 😀 ♥", "naïve café 日本語 1/2 cup ♥"),
        ("see www.flickr.com, @home or mail me@here.org", "see www.flickr.com @home or mail me@here.org"),
        ("what?! no!! really?", "what ?! no !! really"),
        ("No. 5 but no. A", "no. 5 but no a"),
        ("", ""),
        (" . , ; ", ""),
    ],
)
def test_captions_are_split_as_the_stanford_tokenizer_splits_them(text: str, tokens: str | None) -> None:
    expected = tokens.split() if tokens is not None else re.sub(r",", "", text).lower().split()
    assert ptb_tokens(text) == expected


def test_a_number_and_its_fraction_are_one_token_with_a_no_break_space() -> None:
    assert ptb_tokens("3 1/2 inches") == ["3\xa01/2", "inches"]


@given(st.text())
def test_tokens_of_any_text_have_no_punctuation_spaces_or_capitals(text: str) -> None:
    for token in ptb_tokens(text):
        assert token
        assert token not in PUNCTUATION
        assert token == token.lower()
        assert not re.search(r"[ \n\t]", token)


word = st.from_regex(r"[a-z]{2,8}(-[a-z]{2,8})?", fullmatch=True).filter(lambda w: w not in {"cannot", "gonna", "gotta", "lemme", "gimme", "wanna"})


@given(st.lists(st.tuples(word, st.sampled_from(["", "", ",", "'s", "n't", " 's", '"', " -", ";"])), max_size=12))
def test_tokenizing_tokens_again_changes_nothing(words: list[tuple[str, str]]) -> None:
    once = ptb_tokens(" ".join(f"{word}{mark}" for word, mark in words))
    assert ptb_tokens(" ".join(once)) == once


@pytest.mark.parametrize("piece", ["a;", "a,", "1/", "'s", "#a", "a.b@", "(", "http://a ", "<a "])
def test_the_time_for_a_hostile_text_is_proportional_to_its_length(piece: str) -> None:
    began = time.perf_counter()
    ptb_tokens(piece * 20_000)
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize(
    ("piece", "times", "tokens"),
    [
        ("\u0e32", 5_000, ["\u0e32" * 5_000]),  # a letter that is also a vowel mark
        ("#.", 100_000, ["#"] * 100_000),  # resembles a web name that never ends in .com
        ("www.1-", 100_000, ["www.1-www", ".1"] * 50_000),
    ],
    ids=["a long word of marks", "many full stops", "many beginnings of web names"],
)
def test_a_long_hostile_text_is_tokenized_completely(piece: str, times: int, tokens: list[str]) -> None:
    code = "import json, sys; from model.ptb import ptb_tokens; print(json.dumps(ptb_tokens(json.load(sys.stdin))))"
    # In its own process: catastrophic backtracking would not end, and cannot be interrupted.
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(piece * times), cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stdout) == tokens
