"""The field's scores over tokens: BLEU, ROUGE-L and CIDEr by pycocoevalcap's own scorers, without Java.

pycocoevalcap's evaluation drops punctuation that the Stanford tokenizer has split off; the same marks are dropped here.
"""

from collections.abc import Sequence

# The marks that the COCO evaluation removes after tokenization (pycocoevalcap, tokenizer/ptbtokenizer.py).
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", "(", ")", "{", "}", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)


def scored_tokens(tokens: Sequence[str]) -> list[str]:
    """The tokens that count: all but punctuation. A token that ends a sentence inside a caption loses its full stop.

    >>> scored_tokens(["a", "dog.", "a", "cat", "."])
    ['a', 'dog', 'a', 'cat']
    """
    kept = []
    for token in tokens:
        if token in PUNCTUATION:
            continue
        stripped = token[:-1] if token.endswith(".") and token.count(".") == 1 else token
        if stripped:
            kept.append(stripped)
    return kept


def score_captions(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> dict[str, float]:
    """Corpus scores of one caption per image.

    Args:
        candidates: For each image the words of its caption, punctuation and all.
        references: For each image the token lists of its references, at least one each.

    Returns:
        ``bleu_1`` to ``bleu_4`` (Papineni et al., 2002), ``rouge_l`` (Lin, 2004) and ``cider`` (Vedantam et al.,
        2015, as the COCO evaluation implements it, on a scale of 0 to 10). CIDEr's document frequencies come from these
        references, so that it is 0 for a single image.

    Raises:
        ValueError: No images, or other numbers of candidates and references.
    """
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    truth, result = _comparable(candidates, references)
    bleu, _ = Bleu(4).compute_score(truth, result, verbose=0)
    rouge, _ = Rouge().compute_score(truth, result)
    scores = {f"bleu_{n}": float(value) for n, value in enumerate(bleu, 1)}
    return {**scores, "rouge_l": float(rouge), "cider": _cider(truth, result)}


def cider(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """The score ``cider`` of :func:`score_captions` alone."""
    return _cider(*_comparable(candidates, references))


Comparable = dict[int, list[str]]


def _comparable(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> tuple[Comparable, Comparable]:
    if not candidates or len(candidates) != len(references) or not all(references):
        raise ValueError(f"{len(candidates)} captions for {len(references)} images, each with at least one reference, cannot be scored")
    result = {index: [" ".join(scored_tokens(words))] for index, words in enumerate(candidates)}
    return {index: [" ".join(scored_tokens(words)) for words in group] for index, group in enumerate(references)}, result


def _cider(truth: Comparable, result: Comparable) -> float:
    from pycocoevalcap.cider.cider import Cider

    score, _ = Cider().compute_score(truth, result)
    return float(score)
