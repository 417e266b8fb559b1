import json
import math
from pathlib import Path

import numpy as np
import pytest

from model.metrics import BAD_ENDINGS, bad_endings, bleu, bleu_of_counts, cider, corpus_scores, distinct, lengths, novel, rouge_l
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
    found = bleu(candidates, references)
    result = {i: [" ".join(tokens)] for i, tokens in enumerate(candidates)}
    truth = {i: [" ".join(tokens) for tokens in group] for i, group in enumerate(references)}
    expected, expected_images = Bleu(4).compute_score(truth, result, verbose=0)
    assert list(found.corpus) == expected
    assert found.images.tolist() == expected_images
    # The summed counts of all images give the corpus score; one image's counts give its own score.
    assert bleu_of_counts(found.counts.sum(axis=0)) == expected
    assert bleu_of_counts(found.counts[7]) == pytest.approx([values[7] for values in expected_images], abs=1e-12)
    scores = dict(zip(("bleu_1", "bleu_2", "bleu_3", "bleu_4"), expected, strict=True))
    for name, metric, scorer in (("rouge_l", rouge_l, Rouge()), ("cider", cider, Cider())):
        corpus, images = scorer.compute_score(truth, result)
        scores[name] = corpus
        assert metric(candidates, references).corpus == corpus
        assert metric(candidates, references).images.tolist() == images.tolist()
    assert corpus_scores(candidates, references) == scores


def test_bleu_equals_a_calculation_by_hand() -> None:
    # 7 of 8 words are right; bigrams 5 of 7, trigrams 3 of 6, 4-grams 1 of 5 against the one reference; lengths are equal.
    candidate = ["the", "big", "dog", "runs", "on", "a", "green", "field"]
    reference = ["the", "big", "dog", "runs", "in", "a", "green", "field"]
    found = bleu([candidate], [[reference]])
    precisions = [7 / 8, 5 / 7, 3 / 6, 1 / 5]
    for n in range(1, 5):
        expected = math.prod(precisions[:n]) ** (1 / n)
        assert found.corpus[n - 1] == pytest.approx(expected, abs=1e-6)
    assert found.counts.tolist() == [[7, 5, 3, 1, 8, 7, 6, 5, 8, 8]]


def test_a_short_caption_pays_the_brevity_penalty() -> None:
    assert bleu_of_counts([2, 1, 0, 0, 2, 1, 0, 0, 2, 4])[0] == pytest.approx(math.exp(1 - 4 / 2), abs=1e-6)


def test_rouge_l_equals_a_calculation_by_hand() -> None:
    # Longest common subsequence 3; precision 3/4, recall 3/5, beta 1.2.
    found = rouge_l([["a", "b", "c", "x"]], [[["a", "y", "b", "z", "c"]]])
    precision, recall, beta = 3 / 4, 3 / 5, 1.2
    assert found.corpus == pytest.approx((1 + beta**2) * precision * recall / (recall + beta**2 * precision))


def test_perfect_captions_score_one_and_cider_ten() -> None:
    references = [[["a", "red", "dog", "runs", "fast"]], [["two", "blue", "cats", "sleep", "here"]], [["one", "old", "man", "eats", "fish"]]]
    captions = [group[0] for group in references]
    assert bleu(captions, references).corpus[3] == pytest.approx(1.0, abs=1e-6)
    found = cider(captions, references)
    assert found.corpus == pytest.approx(10.0, abs=1e-6)
    assert found.images == pytest.approx(np.full(3, 10.0), abs=1e-6)


def test_captions_and_references_without_a_word_score_0_and_raise_no_error() -> None:
    assert list(corpus_scores([[]], [[["a", "dog"]]]).values()) == pytest.approx([0.0] * 6, abs=1e-6)
    assert cider([["a"], ["b"]], [[[]], [[]]]).corpus == 0


def test_descriptive_figures_equal_counts_by_hand() -> None:
    captions = [["a", "dog", "on", "a"], ["a", "cat"], ["a", "cat"], []]
    assert distinct(captions).tolist() == [1.0, 0.5, 0.5, 1.0]
    assert novel(captions, {"a cat"}).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert lengths(captions).tolist() == [4.0, 2.0, 2.0, 0.0]
    assert bad_endings(captions).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert len(BAD_ENDINGS) == 14


def test_captions_and_references_that_do_not_match_are_refused() -> None:
    pairs: list[tuple[list[list[str]], Groups]] = [([["a"]], []), ([["a"]], [[]]), ([], [])]
    for metric in (bleu, rouge_l, cider):
        for candidates, references in pairs:
            with pytest.raises(ValueError, match="cannot score"):
                metric(candidates, references)
