import json
import math
from pathlib import Path

import numpy as np
import pytest

from model.metrics import BAD_ENDINGS, bleu_of_counts, caption_qualities, cider, score_captions
from model.ptb import ptb_tokens

Groups = list[list[list[str]]]


def leave_one_out(data: Path, images: int) -> tuple[list[list[str]], Groups]:
    """One human caption of each image as its candidate, the others as references."""
    content = json.loads((data / "coco-captions" / "captions_val2017.json").read_text())
    by_image: dict[int, list[list[str]]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(ptb_tokens(annotation["caption"]))
    groups = list(by_image.values())[:images]
    return [group[0] for group in groups], [group[1:] for group in groups]


def test_scores_of_real_captions_equal_pycocoevalcaps_to_the_last_bit(data: Path) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates, references = leave_one_out(data, 1500)
    found = score_captions(candidates, references)
    result = {i: [" ".join(tokens)] for i, tokens in enumerate(candidates)}
    truth = {i: [" ".join(tokens) for tokens in group] for i, group in enumerate(references)}
    bleu, bleu_images = Bleu(4).compute_score(truth, result, verbose=0)
    for n in range(4):
        assert found.corpus[f"bleu_{n + 1}"] == bleu[n]
        assert found.images[f"bleu_{n + 1}"].tolist() == bleu_images[n]
    for name, scorer in (("rouge_l", Rouge()), ("cider", Cider())):
        corpus, images = scorer.compute_score(truth, result)
        assert found.corpus[name] == corpus
        assert found.images[name].tolist() == images.tolist()
    assert cider(candidates, references) == found.corpus["cider"]
    # All images' counts give the corpus score; one image's the score of it.
    assert bleu_of_counts(found.bleu_counts.sum(axis=0)) == bleu
    assert bleu_of_counts(found.bleu_counts[7]) == pytest.approx([values[7] for values in bleu_images], abs=1e-12)


def test_bleu_equals_hand_arithmetic() -> None:
    # 7 of 8 words are right; bigrams 5 of 7, trigrams 3 of 6, 4-grams 1 of 5 against the one reference; lengths are equal.
    candidate = ["the", "big", "dog", "runs", "on", "a", "green", "field"]
    reference = ["the", "big", "dog", "runs", "in", "a", "green", "field"]
    found = score_captions([candidate], [[reference]])
    precisions = [7 / 8, 5 / 7, 3 / 6, 1 / 5]
    for n in range(1, 5):
        expected = math.prod(precisions[:n]) ** (1 / n)
        assert found.corpus[f"bleu_{n}"] == pytest.approx(expected, abs=1e-6)
    assert found.bleu_counts.tolist() == [[7, 5, 3, 1, 8, 7, 6, 5, 8, 8]]


def test_a_short_caption_pays_the_brevity_penalty() -> None:
    assert bleu_of_counts([2, 1, 0, 0, 2, 1, 0, 0, 2, 4])[0] == pytest.approx(math.exp(1 - 4 / 2), abs=1e-6)


def test_rouge_l_equals_hand_arithmetic() -> None:
    # Longest common subsequence 3; precision 3/4, recall 3/5, beta 1.2.
    found = score_captions([["a", "b", "c", "x"]], [[["a", "y", "b", "z", "c"]]])
    precision, recall, beta = 3 / 4, 3 / 5, 1.2
    assert found.corpus["rouge_l"] == pytest.approx((1 + beta**2) * precision * recall / (recall + beta**2 * precision))


def test_perfect_captions_score_one_and_cider_ten() -> None:
    references = [[["a", "red", "dog", "runs", "fast"]], [["two", "blue", "cats", "sleep", "here"]], [["one", "old", "man", "eats", "fish"]]]
    found = score_captions([group[0] for group in references], references)
    assert found.corpus["bleu_4"] == pytest.approx(1.0, abs=1e-6)
    assert found.corpus["cider"] == pytest.approx(10.0, abs=1e-6)
    assert found.images["cider"] == pytest.approx(np.full(3, 10.0), abs=1e-6)


def test_captions_and_references_without_a_word_score_nothing_and_stop_nothing() -> None:
    assert score_captions([[]], [[["a", "dog"]]]).corpus == pytest.approx(dict.fromkeys(score_captions([["a"]], [[["b"]]]).corpus, 0.0), abs=1e-6)
    assert score_captions([["a"], ["b"]], [[[]], [[]]]).corpus["cider"] == 0


def test_qualities_equal_hand_counts() -> None:
    captions = [["a", "dog", "on", "a"], ["a", "cat"], ["a", "cat"], []]
    found = caption_qualities(captions, {"a cat"})
    assert found["distinct"].tolist() == [1.0, 0.5, 0.5, 1.0]
    assert found["novel"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert found["mean_length"].tolist() == [4.0, 2.0, 2.0, 0.0]
    assert found["bad_endings"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert "novel" not in caption_qualities(captions)
    assert len(BAD_ENDINGS) == 14


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be scored"):
        score_captions([["a"]], [])
    with pytest.raises(ValueError, match="cannot be scored"):
        score_captions([["a"]], [[]])
    with pytest.raises(ValueError, match="cannot be scored"):
        score_captions([], [])
