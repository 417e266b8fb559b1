import math

import pytest

from model.metrics import score_captions, scored_tokens


def test_bleu_equals_hand_arithmetic() -> None:
    # 7 of 8 words are right; bigrams 5 of 7, trigrams 3 of 6, 4-grams 1 of 5 against the one reference; lengths are equal.
    candidate = ["the", "big", "dog", "runs", "on", "a", "green", "field"]
    reference = ["the", "big", "dog", "runs", "in", "a", "green", "field"]
    scores = score_captions([candidate], [[reference]])
    precisions = [7 / 8, 5 / 7, 3 / 6, 1 / 5]
    for n in range(1, 5):
        expected = math.prod(precisions[:n]) ** (1 / n)
        assert scores[f"bleu_{n}"] == pytest.approx(expected, abs=1e-6)


def test_rouge_l_equals_hand_arithmetic() -> None:
    # Longest common subsequence 3; precision 3/4, recall 3/5, beta 1.2.
    scores = score_captions([["a", "b", "c", "x"]], [[["a", "y", "b", "z", "c"]]])
    precision, recall, beta = 3 / 4, 3 / 5, 1.2
    assert scores["rouge_l"] == pytest.approx((1 + beta**2) * precision * recall / (recall + beta**2 * precision))


def test_perfect_captions_score_one_and_cider_ten() -> None:
    references = [[["a", "red", "dog", "runs", "fast"]], [["two", "blue", "cats", "sleep", "here"]], [["one", "old", "man", "eats", "fish"]]]
    scores = score_captions([group[0] for group in references], references)
    assert scores["bleu_4"] == pytest.approx(1.0, abs=1e-6)
    assert scores["cider"] == pytest.approx(10.0, abs=1e-6)


def test_punctuation_does_not_count() -> None:
    assert scored_tokens(["a", ",", "dog", "--", "runs", "."]) == ["a", "dog", "runs"]
    with_marks = score_captions([["a", "dog", "."]], [[["a", ",", "dog"]]])
    assert with_marks["bleu_2"] == pytest.approx(1.0, abs=1e-6)


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be scored"):
        score_captions([["a"]], [])
    with pytest.raises(ValueError, match="cannot be scored"):
        score_captions([["a"]], [[]])
