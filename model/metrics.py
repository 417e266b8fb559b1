"""The field's metrics over tokens, without Java: BLEU, ROUGE-L and CIDEr by pycocoevalcap's own scorers, and figures that describe captions.

Tokens are taken as given. :func:`model.ptb.ptb_tokens` makes the ones that the COCO evaluation scores.
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
# Words that no sentence ends with: "a man riding a wave on a". The list is from the best-known code for self-critical training
# (ruotianluo/self-critical.pytorch, captioning/utils/eval_utils.py, bad_endings).
BAD_ENDINGS = frozenset(("with", "in", "on", "of", "a", "at", "to", "for", "an", "this", "his", "her", "that", "the"))


@dataclass(frozen=True, kw_only=True)
class MetricScores:
    """One metric's scores of one caption per image.

    Attributes:
        corpus: The score of all images together.
        images: float64 (images,): the score of each image alone.
    """

    corpus: float
    images: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BleuScores:
    """BLEU-1 to BLEU-4 of one caption per image.

    Attributes:
        corpus: The four scores of all images together.
        images: float64 (4, images): the four scores of each image alone.
        counts: int64 (images, 10): correct n-grams for n from 1 to 4, guessed n-grams for n from 1 to 4, words in the caption, words in the
            reference that is closest in length. BLEU of several images is :func:`bleu_of_counts` of their summed counts.
    """

    corpus: tuple[float, ...]
    images: NDArray[np.float64]
    counts: NDArray[np.int64]


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> BleuScores:
    """BLEU (Papineni et al., 2002) with up to 4-grams.

    Args:
        candidates: For each image, the tokens of its caption.
        references: For each image, the tokens of its references, at least one.

    Raises:
        ValueError: There are no images, or the numbers of candidates and references differ.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    truth, result = _comparable(candidates, references)
    # A scorer of our own, as pycocoevalcap's Bleu does not return the counts. It holds all n-grams of all references until this returns.
    scorer = BleuScorer(n=MAX_N)
    for index, hypothesis in result.items():
        scorer += (hypothesis[0], truth[index])
    corpus, of_images = scorer.compute_score(option="closest", verbose=0)
    counts = [(*c["correct"], *c["guess"], c["testlen"], min((abs(n - c["testlen"]), n) for n in c["reflen"])[1]) for c in scorer.ctest]
    return BleuScores(corpus=tuple(map(float, corpus)), images=np.array(of_images), counts=np.array(counts, dtype=np.int64))


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> MetricScores:
    """ROUGE-L (Lin, 2004). The corpus score is the mean of the images' scores. Arguments and errors as for :func:`bleu`."""
    from pycocoevalcap.rouge.rouge import Rouge

    corpus, of_images = Rouge().compute_score(*_comparable(candidates, references))
    return MetricScores(corpus=float(corpus), images=of_images)


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> MetricScores:
    """CIDEr-D (Vedantam et al., 2015) as the COCO evaluation computes it, from 0 to 10. The corpus score is the mean of the images' scores.

    The document frequencies come from these references, so the score of a single image is 0. Arguments and errors as for :func:`bleu`.
    """
    from pycocoevalcap.cider.cider import Cider

    truth, result = _comparable(candidates, references)
    if not any(text for group in truth.values() for text in group):  # without a word in the references, the scorer fails
        return MetricScores(corpus=0.0, images=np.zeros(len(truth)))
    corpus, of_images = Cider().compute_score(truth, result)
    return MetricScores(corpus=float(corpus), images=of_images)


def corpus_scores(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> dict[str, float]:
    """The corpus scores ``bleu_1`` to ``bleu_4``, ``rouge_l`` and ``cider`` by name. Arguments and errors as for :func:`bleu`."""
    return {
        **dict(zip(BLEU, bleu(candidates, references).corpus, strict=True)),
        "rouge_l": rouge_l(candidates, references).corpus,
        "cider": cider(candidates, references).corpus,
    }


ScorerInput = dict[int, list[str]]


def _comparable(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[ScorerInput, ScorerInput]:
    """References and captions as pycocoevalcap's scorers take them: texts (tokens joined by spaces) by the image's index."""
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError(f"cannot score {len(candidates)} captions of {len(references)} images: each image needs one caption and its references")
    result = {index: [" ".join(tokens)] for index, tokens in enumerate(candidates)}
    return {index: [" ".join(tokens) for tokens in group] for index, group in enumerate(references)}, result


def bleu_of_counts(totals: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """BLEU-1 to BLEU-4 of summed :attr:`BleuScores.counts`: geometric means of the precisions, times the brevity penalty.

    The small numbers that prevent divisions by zero, and the order of operations, are those of pycocoevalcap's BleuScorer: the sums over
    all images give its corpus score to the last bit.

    Args:
        totals: (10,): the counts, summed over images.
    """
    small, tiny = 1e-9, 1e-15
    correct, guessed, (caption_length, reference_length) = totals[:MAX_N], totals[MAX_N : 2 * MAX_N], totals[2 * MAX_N :]
    product, scores = 1.0, []
    for n in range(MAX_N):
        product *= (float(correct[n]) + tiny) / (float(guessed[n]) + small)
        scores.append(product ** (1.0 / (n + 1)))
    ratio = (float(caption_length) + tiny) / (float(reference_length) + small)
    return [score * math.exp(1 - 1 / ratio) for score in scores] if ratio < 1 else scores


def distinct(candidates: Sequence[Tokens]) -> NDArray[np.float64]:
    """float64 (images,): one over the number of images that have this caption, so that the mean is the share of different captions.

    >>> distinct([["a", "dog"], ["a", "dog"], ["a", "cat"]]).tolist()
    [0.5, 0.5, 1.0]
    """
    joined = [" ".join(tokens) for tokens in candidates]
    images = Counter(joined)
    return np.array([1 / images[text] for text in joined])


def novel(candidates: Sequence[Tokens], training: Collection[str]) -> NDArray[np.float64]:
    """float64 (images,): 1 where the caption is not among the training captions, else 0.

    Args:
        training: The training captions' tokens, joined by spaces.
    """
    return np.array([float(" ".join(tokens) not in training) for tokens in candidates])


def lengths(candidates: Sequence[Tokens]) -> NDArray[np.float64]:
    """float64 (images,): the number of words in each caption."""
    return np.array([float(len(tokens)) for tokens in candidates])


def bad_endings(candidates: Sequence[Tokens]) -> NDArray[np.float64]:
    """float64 (images,): 1 where the caption ends with one of :data:`BAD_ENDINGS`, else 0.

    >>> bad_endings([["a", "dog"], ["a", "cat", "on", "a"]]).tolist()
    [0.0, 1.0]
    """
    return np.array([float(bool(tokens) and tokens[-1] in BAD_ENDINGS) for tokens in candidates])
