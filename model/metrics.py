"""The field's scores over tokens: BLEU, ROUGE-L and CIDEr by pycocoevalcap's own scorers, without Java; and what captions are like.

Tokens are taken as they come: :func:`model.ptb.ptb_tokens` makes those that the COCO evaluation scores.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = Sequence[str]
MAX_N = 4
BLEU = tuple(f"bleu_{n}" for n in range(1, MAX_N + 1))
# Words that no sentence ends with: "a man riding a wave on a". The list of the self-critical literature's best-known code
# (ruotianluo/self-critical.pytorch, captioning/utils/eval_utils.py, bad_endings).
BAD_ENDINGS = frozenset(("with", "in", "on", "of", "a", "at", "to", "for", "an", "this", "his", "her", "that", "the"))


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of one caption per image.

    Attributes:
        corpus: By name, of all images together: ``bleu_1`` to ``bleu_4`` (Papineni et al., 2002), ``rouge_l`` (Lin, 2004), ``cider``
            (Vedantam et al., 2015, as the COCO evaluation implements it, on a scale of 0 to 10).
        images: By the same names, float64 (images,): of each image alone.
        bleu_counts: int64 (images, 10): correct n-grams for n of 1 to 4, guessed n-grams for n of 1 to 4, words of the caption, words of
            the reference that is closest in length. BLEU of several images is that of their sums.
    """

    corpus: dict[str, float]
    images: dict[str, NDArray[np.float64]]
    bleu_counts: NDArray[np.int64]


def score_captions(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> CaptionScores:
    """Score one caption per image.

    CIDEr's document frequencies come from these references, so that it is 0 for a single image.

    Args:
        candidates: For each image the tokens of its caption.
        references: For each image the tokens of its references, at least one each.

    Raises:
        ValueError: No images, or other numbers of candidates and references.
    """
    from pycocoevalcap.rouge.rouge import Rouge

    truth, result = comparable(candidates, references)
    bleu, bleu_images, counts = _bleu(truth, result)
    rouge, rouge_images = Rouge().compute_score(truth, result)
    cider_corpus, cider_images = _cider(truth, result)
    return CaptionScores(
        corpus={**dict(zip(BLEU, bleu, strict=True)), "rouge_l": float(rouge), "cider": cider_corpus},
        images={
            **{name: np.array(of_image) for name, of_image in zip(BLEU, bleu_images, strict=True)},
            "rouge_l": rouge_images,
            "cider": cider_images,
        },
        bleu_counts=counts,
    )


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """The score ``cider`` of :func:`score_captions` alone."""
    return _cider(*comparable(candidates, references))[0]


Comparable = dict[int, list[str]]


def comparable(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[Comparable, Comparable]:
    """References and captions as pycocoevalcap's scorers take them, by the image's place: tokens joined by spaces.

    Raises:
        ValueError: As :func:`score_captions`.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError(f"{len(candidates)} captions for {len(references)} images, each with at least one reference, cannot be scored")
    result = {index: [" ".join(tokens)] for index, tokens in enumerate(candidates)}
    return {index: [" ".join(tokens) for tokens in group] for index, group in enumerate(references)}, result


def _bleu(truth: Comparable, result: Comparable) -> tuple[list[float], list[list[float]], NDArray[np.int64]]:
    """Corpus scores, those of each image, and its counts. The scorer, with all n-grams of all references, goes before the next one comes."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=MAX_N)
    for index, hypothesis in result.items():
        scorer += (hypothesis[0], truth[index])
    corpus, of_images = scorer.compute_score(option="closest", verbose=0)  # as pycocoevalcap's Bleu does
    counts = [(*c["correct"], *c["guess"], c["testlen"], min((abs(n - c["testlen"]), n) for n in c["reflen"])[1]) for c in scorer.ctest]
    return list(map(float, corpus)), of_images, np.array(counts, dtype=np.int64)


def _cider(truth: Comparable, result: Comparable) -> tuple[float, NDArray[np.float64]]:
    from pycocoevalcap.cider.cider import Cider

    if not any(text for group in truth.values() for text in group):  # no word to have a frequency: the scorer would stop
        return 0.0, np.zeros(len(truth))
    score, of_images = Cider().compute_score(truth, result)
    return float(score), of_images


def bleu_of_counts(totals: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """BLEU-1 to BLEU-4 of all_reduce_sum :attr:`CaptionScores.bleu_counts`: geometric means of the precisions, times the brevity penalty.

    The small numbers that keep divisions finite, and the order of operations, are those of pycocoevalcap's BleuScorer: all images' sums
    give its corpus score to the last bit.
    """
    small, tiny = 1e-9, 1e-15
    correct, guessed, (caption_length, reference_length) = totals[:MAX_N], totals[MAX_N : 2 * MAX_N], totals[2 * MAX_N :]
    product, scores = 1.0, []
    for n in range(MAX_N):
        product *= (float(correct[n]) + tiny) / (float(guessed[n]) + small)
        scores.append(product ** (1.0 / (n + 1)))
    ratio = (float(caption_length) + tiny) / (float(reference_length) + small)
    return [score * math.exp(1 - 1 / ratio) for score in scores] if ratio < 1 else scores


def caption_qualities(candidates: Sequence[Tokens], training: Collection[str] | None = None) -> dict[str, NDArray[np.float64]]:
    """What captions are like, right or wrong: by name, float64 (images,), whose mean is the figure of the whole.

    ``distinct``: one over the number of images that have this caption, so that the mean is the share of different captions. ``novel``: 1
    where it is not among the training captions. ``mean_length``: words. ``bad_endings``: 1 where it ends with one of ``BAD_ENDINGS``.

    Args:
        training: The training captions' tokens, joined by spaces; without them there is no ``novel``.

    >>> qualities = caption_qualities([["a", "dog"], ["a", "dog"], ["a", "cat", "on", "a"]], {"a dog"})
    >>> {name: float(values.mean().round(3)) for name, values in qualities.items()}
    {'distinct': 0.667, 'novel': 0.333, 'mean_length': 2.667, 'bad_endings': 0.333}
    """
    joined = [" ".join(tokens) for tokens in candidates]
    having = Counter(joined)
    found = {"distinct": np.array([1 / having[text] for text in joined])}
    if training is not None:
        found["novel"] = np.array([float(text not in training) for text in joined])
    found["mean_length"] = np.array([float(len(tokens)) for tokens in candidates])
    found["bad_endings"] = np.array([float(bool(tokens) and tokens[-1] in BAD_ENDINGS) for tokens in candidates])
    return found
