"""CIDEr-D over ids, compared with pycocoevalcap's scorer over strings and with calculations by hand."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.cider_d import CiderD
from tests.model.test_metrics import leave_one_out

Caption = Sequence[int]
Groups = Sequence[Sequence[Caption]]

# Few words, so that n-grams are repeated; 6 and 7 occur only in candidates.
REFERENCES = st.lists(st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=4), min_size=1, max_size=6).filter(
    lambda groups: any(words for group in groups for words in group)
)
CANDIDATES = st.lists(st.lists(st.integers(0, 7), max_size=14), min_size=6, max_size=6)


def scorer_of(groups: Groups, dtype: type[np.integer] = np.int64) -> CiderD:
    """A scorer for groups: the references of each image."""
    captions = [words for group in groups for words in group]
    return CiderD(
        np.array([word for words in captions for word in words], dtype=dtype),
        np.cumsum([0, *map(len, captions)]),
        np.repeat(np.arange(len(groups)), [len(group) for group in groups]).astype(dtype),
        len(groups),
    )


def scores(scorer: CiderD, candidates: Sequence[Caption], images: Sequence[int], *, padding: int = 0, more: int = 0) -> NDArray[np.float64]:
    tokens = np.full((len(candidates), max(map(len, candidates), default=0) + more), padding)
    for row, words in enumerate(candidates):
        tokens[row, : len(words)] = words
    return scorer.score(tokens, np.array([len(words) for words in candidates], dtype=np.int64), np.array(images, dtype=np.int64))


def pycocoevalcap_scores(groups: Groups, candidates: Sequence[Caption]) -> NDArray[np.float64]:
    """Scores of one candidate per image."""
    from pycocoevalcap.cider.cider import Cider

    def text(words: Caption) -> str:
        return " ".join(map(str, words))

    truth = {image: [text(words) for words in group] for image, group in enumerate(groups)}
    found: NDArray[np.float64] = Cider().compute_score(truth, {image: [text(words)] for image, words in enumerate(candidates)})[1]
    return found


@settings(max_examples=200, deadline=None)
@given(REFERENCES, CANDIDATES)
def test_scores_equal_pycocoevalcaps(groups: Groups, candidates: Sequence[Caption]) -> None:
    candidates = candidates[: len(groups)]
    found = scores(scorer_of(groups), candidates, range(len(groups)))
    np.testing.assert_allclose(found, pycocoevalcap_scores(groups, candidates), rtol=0, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(REFERENCES, CANDIDATES, st.lists(st.integers(0, 5), min_size=6, max_size=6), st.permutations(range(6)), st.integers(0, 3))
def test_a_score_does_not_depend_on_the_batch_its_order_or_its_padding(
    groups: Groups, candidates: Sequence[Caption], images: Sequence[int], order: Sequence[int], padding: int
) -> None:
    images = [image % len(groups) for image in images]
    scorer = scorer_of(groups)
    alone = [scores(scorer, [words], [image])[0] for words, image in zip(candidates, images, strict=True)]
    found = scores(scorer, [candidates[row] for row in order], [images[row] for row in order], padding=padding, more=padding)
    np.testing.assert_allclose(found, np.array(alone)[list(order)], rtol=0, atol=1e-12)


def test_real_captions_score_as_with_pycocoevalcap_one_or_several_per_image(data: Path) -> None:
    candidates, references = leave_one_out(data, 1000)
    ids: dict[str, int] = {}
    groups = [[[ids.setdefault(word, len(ids)) for word in words] for words in group] for group in references]
    own = [[ids.setdefault(word, len(ids)) for word in words] for words in candidates]
    shifted = [*own[1:], own[0]]  # captions of another image
    scorer = scorer_of(groups, np.int32)
    found = scores(scorer, [*own, *shifted], [*range(1000), *range(1000)])
    assert found[:1000].mean() > 10 * found[1000:].mean()
    np.testing.assert_allclose(found[:1000], pycocoevalcap_scores(groups, own), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[1000:], pycocoevalcap_scores(groups, shifted), rtol=0, atol=1e-9)


def test_a_candidate_equal_to_the_only_reference_scores_ten() -> None:
    scorer = scorer_of([[[1, 2, 3, 4, 5]], [[6, 7, 8, 9]]])
    assert scores(scorer, [[1, 2, 3, 4, 5], [6, 7, 8, 9]], [0, 1]) == pytest.approx([10, 10], abs=1e-12)


def test_a_candidate_shorter_than_an_ngram_scores_0_for_it() -> None:
    scorer = scorer_of([[[1, 2]], [[6, 7, 8, 9]]])
    # One and two words agree, three and four are not there: half of 10.
    assert scores(scorer, [[1, 2]], [0]) == pytest.approx([5], abs=1e-12)


def test_empty_candidates_and_empty_references_score_0() -> None:
    scorer = scorer_of([[[1, 2, 3], []], [[4]]])
    assert scores(scorer, [[], [1, 2, 3], []], [0, 0, 1]).tolist() == pytest.approx([0, 3.75, 0], abs=1e-12)
    assert scores(scorer, [], []).shape == (0,)
    assert scores(scorer_of([[[]], [[]]]), [[1, 2], []], [0, 1]).tolist() == [0, 0]


def test_repeated_words_are_clipped_and_stay_in_the_norm() -> None:
    scorer = scorer_of([[[1, 2]], [[3]]])
    # All weights are log 2. "1 1 1" compared with "1 2": min(3, 1) * 1 over 3 * sqrt(2); one bigram more than the reference.
    expected = 10 / 4 / (3 * math.sqrt(2)) * math.exp(-1 / 72)
    assert scores(scorer, [[1, 1, 1]], [0]) == pytest.approx([expected], abs=1e-12)


def test_words_in_no_reference_count_separately_in_the_norm() -> None:
    scorer = scorer_of([[[1, 2]], [[3]]])
    # "1 8 8": the vector (1, 2), of norm sqrt(5); "1 8 9": (1, 1, 1), of norm sqrt(3). Each has one bigram more than "1 2".
    expected = [10 / 4 / math.sqrt(2 * square) * math.exp(-1 / 72) for square in (5, 3)]
    assert scores(scorer, [[1, 8, 8], [1, 8, 9]], [0, 0]) == pytest.approx(expected, abs=1e-12)


def test_ngrams_of_every_image_have_weight_0_so_that_a_single_image_scores_0() -> None:
    assert scores(scorer_of([[[1, 2, 3, 4]]]), [[1, 2, 3, 4], [5]], [0, 0]).tolist() == [0, 0]
    for images in range(2, 50):  # the logarithm of the number of images minus itself is exactly 0
        assert scores(scorer_of([[[1]]] * images), [[1]], [images - 1]).tolist() == [0]


def test_any_integers_are_ids_and_narrow_ones_do_not_overflow() -> None:
    words, first = 20_000, 199_800
    references, offsets = np.arange(words, dtype=np.int32) * 100_000 - 2**30, np.arange(0, words + 1, 100)
    rows = np.arange(first, first + 200, dtype=np.int32)
    scorer = CiderD(references, offsets, rows, 200_000)
    own, lengths = references.reshape(200, 100), np.full(200, 100, dtype=np.uint8)
    assert scorer.score(own, lengths, rows) == pytest.approx(np.full(200, 10.0), abs=1e-9)
    assert scorer.score(own, lengths, rows[::-1]).tolist() == [0] * 200
    last = np.arange(56, 256, dtype=np.uint8)
    assert CiderD(references, offsets.astype(np.uint16), last, 256).score(own, lengths, last) == pytest.approx(np.full(200, 10.0), abs=1e-9)


def test_images_without_references_count_but_cannot_be_scored() -> None:
    two = CiderD(np.array([1, 2]), np.array([0, 1, 2]), np.array([0, 2]), 4)
    # log 4 for a word of one image; "1 9" compared with "1": 1 / sqrt(2), one bigram more.
    assert scores(two, [[1, 9]], [0]) == pytest.approx([10 / 4 / math.sqrt(2) * math.exp(-1 / 72)], abs=1e-12)
    with pytest.raises(ValueError, match="image 3 has no reference"):
        scores(two, [[1], [1], [1]], [0, 3, 1])


@pytest.mark.parametrize(
    ("references", "offsets", "rows", "images", "message"),
    [
        ([1, 2], [0, 1], [0], 1, "do not split 2 ids"),
        ([1, 2], [0, 2, 1, 2], [0, 0, 0], 1, "do not split 2 ids"),
        ([1, 2], [0, 2], [0, 0], 1, "into 2 references"),
        ([1, 2], [1, 2], [0], 1, "do not split"),
        ([1, 2], [0, 1, 2], [1, 0], 2, "must be ascending"),
        ([1, 2], [0, 1, 2], [0, 2], 2, "between 0 and 1"),
        ([1, 2], [0, 1, 2], [-1, 0], 2, "must be ascending"),
        ([], [0], [], 0, "image_rows"),
        ([[1, 2]], [0, 2], [0], 1, "one dimension"),
    ],
)
def test_references_whose_arrays_do_not_match_are_refused(
    references: list[int], offsets: list[int], rows: list[int], images: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        CiderD(np.array(references, dtype=np.int64), np.array(offsets), np.array(rows, dtype=np.int64), images)


@pytest.mark.parametrize(
    ("tokens", "lengths", "images", "message"),
    [
        ([[1, 2]], [3], [0], "lengths from 3 to 3: must be between 0 and the 2 ids"),
        ([[1, 2]], [-1], [0], "lengths from -1"),
        ([[1, 2]], [2], [1], "images from 1 to 1: must be between 0 and 0"),
        ([[1, 2]], [2], [-1], "images from -1"),
        ([[1, 2]], [2, 2], [0, 0], "are not"),
        ([1, 2], [2, 2], [0, 0], "are not"),
    ],
)
def test_candidates_whose_arrays_do_not_match_are_refused(tokens: list[int], lengths: list[int], images: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scorer_of([[[1, 2]]]).score(np.array(tokens), np.array(lengths), np.array(images))
