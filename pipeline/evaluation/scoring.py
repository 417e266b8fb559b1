"""Captions and references, both as texts -> everything that a score file says of them.

It costs a few seconds for 5,000 images without Java; docs/metrics.md says what each figure is and how its interval is made.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model.decoding import ScoredCaption
from model.intervals import RESAMPLES, bounds, mean_bounds, resampled_sums, statistic_bounds
from model.metrics import BLEU, bleu_of_counts, caption_qualities, score_captions
from model.ptb import ptb_tokens
from pipeline.evaluation.java import NEEDS, JavaError, java_tokens, meteor, require, spice
from pipeline.evaluation.score_file import Interval, ScoredImage, ScoreFile
from shards.errors import InputError
from shards.versions import library_versions

Ptb = Literal["builtin", "java"]
TOKENIZERS = {"builtin": "model.ptb, built in", "java": "Stanford PTBTokenizer, CoreNLP 3.4.1"}
Tokens = list[list[str]]
Bounds = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """An image with the caption that is to be scored and the captions that people wrote, at least one.

    Attributes:
        file_name: Empty where it is unknown.
        alternatives: All captions that decoding found, where there are more than one.
    """

    image_id: int
    file_name: str
    caption: str
    references: tuple[str, ...]
    alternatives: tuple[ScoredCaption, ...] = ()


def check_tokenizer(ptb: Ptb) -> None:
    """Refuse a tokenizer that cannot be had, before any work.

    Raises:
        InputError: There is no Java, or no jar.
    """
    if ptb == "java":
        try:
            require(*NEEDS["tokenizer"], what="The Java tokenizer")
        except JavaError as error:
            raise InputError(f"--ptb java: {error} Or leave --ptb out: the built-in tokenizer needs no Java.") from None


def score_texts(
    images: Sequence[Prediction],
    *,
    split: str,
    made_by: dict[str, Any],
    training: Collection[str] | None = None,
    notes: Sequence[str] = (),
    ptb: Ptb = "builtin",
    java: bool = True,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> ScoreFile:
    """Score captions.

    Args:
        made_by: What is known of their origin; the tokenizer, the intervals' settings and versions are added.
        training: Training captions as they were written, which captions that are novel are not among; None: not known.
        notes: What is to be said already.
        ptb: The tokenizer: our own, or the Stanford one itself.
        java: Measure METEOR and SPICE where Java and their jars are there.
        seed: Of the intervals.
        say: Takes a line for each step that takes a while.

    Raises:
        InputError: No images.
    """
    if not images:
        raise InputError("There is no image that has both a caption and a reference: nothing can be scored.")
    said = list(notes)
    candidates, references, used = _tokens(images, ptb, said, say)
    empty = sum(not words for words in candidates)
    if empty:
        said.append(f"{empty:,} of {len(images):,} captions have no word: they score 0.")
    scored = score_captions(candidates, references)
    known = None if training is None else _joined_training(training, used, said)
    qualities = caption_qualities(candidates, known)
    of_images: dict[str, NDArray[np.float64]] = dict(scored.images)
    figures: dict[str, Bounds] = {
        name: (scored.corpus[name], float(low), float(high))
        for name, low, high in zip(BLEU, *statistic_bounds(scored.bleu_counts.astype(np.float64), bleu_of_counts, seed=seed), strict=True)
    }
    figures |= _means({name: scored.images[name] for name in ("rouge_l", "cider")}, scored.corpus, seed)
    if java:
        for name, measure in (("METEOR", _meteor), ("SPICE", _spice)):
            try:
                require(*NEEDS[name], what=name)
                say(f"{name}, in Java")
                measure(candidates, references, figures, of_images, seed, said)
            except JavaError as error:
                said.append(str(error))
    figures |= _means(qualities, {}, seed)
    of_images |= qualities
    columns = {name: values.tolist() for name, values in of_images.items()}
    return ScoreFile(
        split=split,
        made_by={
            **made_by,
            "tokenizer": TOKENIZERS[used],
            "intervals": {"kind": "bootstrap over images, percentiles", "coverage": 0.95, "resamples": RESAMPLES, "seed": seed},
            "versions": library_versions("torch", "numpy", "nltk", "pycocoevalcap"),
        },
        scores={name: _interval(figures[name], len(images)) for name in figures},
        images=tuple(
            ScoredImage(
                image_id=image.image_id,
                file_name=image.file_name,
                caption=image.caption,
                references=image.references,
                scores={name: column[row] for name, column in columns.items() if not math.isnan(column[row])},
                alternatives=image.alternatives,
            )
            for row, image in enumerate(images)
        ),
        notes=tuple(said),
    )


def _tokens(images: Sequence[Prediction], ptb: Ptb, notes: list[str], say: Callable[[str], None]) -> tuple[Tokens, list[Tokens], Ptb]:
    """Tokens of captions and of references, and the tokenizer that made them."""
    captions = [image.caption for image in images]
    written = [text for image in images for text in image.references]
    if ptb == "java":
        try:
            say("Tokenizing with the Stanford tokenizer")
            # One stream for references and one for captions, as in pycocoevalcap
            return java_tokens(captions), _grouped(java_tokens(written), images), "java"
        except JavaError as error:
            notes.append(f"{error} The built-in tokenizer was used instead.")
    return list(map(ptb_tokens, captions)), _grouped(list(map(ptb_tokens, written)), images), "builtin"


def _grouped(tokens: Tokens, images: Sequence[Prediction]) -> list[Tokens]:
    following = iter(tokens)
    return [[next(following) for _ in image.references] for image in images]


def _joined_training(training: Collection[str], ptb: Ptb, notes: list[str]) -> set[str]:
    if ptb == "java":
        try:
            return set(map(" ".join, java_tokens(list(training))))
        except JavaError as error:
            notes.append(f"{error} Training captions were tokenized with the built-in tokenizer.")
    return {" ".join(ptb_tokens(text)) for text in training}


def _means(values: dict[str, NDArray[np.float64]], corpus: dict[str, float], seed: int) -> dict[str, Bounds]:
    """Figures that are means over images; ``corpus`` has those that were computed elsewhere, to their last bit."""
    lows, highs = mean_bounds(np.stack(list(values.values()), axis=1), seed=seed)
    named = zip(values, lows.tolist(), highs.tolist(), strict=True)
    return {name: (corpus.get(name, float(values[name].mean())), low, high) for name, low, high in named}


def _interval(figure: Bounds, images: int) -> Interval:
    value, low, high = figure
    return Interval(value=value, low=value, high=value) if images == 1 else Interval(value=value, low=low, high=high)


def _joined(candidates: Tokens, references: list[Tokens]) -> tuple[list[str], list[list[str]]]:
    return list(map(" ".join, candidates)), [list(map(" ".join, group)) for group in references]


def _meteor(
    candidates: Tokens,
    references: list[Tokens],
    figures: dict[str, Bounds],
    of_images: dict[str, NDArray[np.float64]],
    seed: int,
    notes: list[str],  # noqa: ARG001 - as _spice
) -> None:
    # The same draws as for the other scores; each draw's statistics are all_reduce_sum, and METEOR computes the score of the sum.
    found = meteor(*_joined(candidates, references), lambda counts: resampled_sums(counts, seed=seed))
    low, high = bounds(found.resampled[:, None])
    figures["meteor"] = (found.corpus, float(low[0]), float(high[0]))
    of_images["meteor"] = found.images


def _spice(
    candidates: Tokens,
    references: list[Tokens],
    figures: dict[str, Bounds],
    of_images: dict[str, NDArray[np.float64]],
    seed: int,
    notes: list[str],
) -> None:
    found = spice(*_joined(candidates, references))
    counted = found[np.isfinite(found)]
    if not len(counted):
        raise JavaError("SPICE found nothing to compare in any image.")
    if len(counted) < len(found):
        notes.append(f"SPICE found nothing to compare in {len(found) - len(counted)} of {len(found)} images: its mean is that of the others.")
    figures |= _means({"spice": counted}, {}, seed)
    of_images["spice"] = found
