"""Captions and references, both as texts -> everything that a score file says about them.

Without Java it takes a few seconds for 5,000 images. docs/metrics.md explains each score and how its interval is computed.
"""

import math
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from model.decoding import ScoredCaption
from model.intervals import COVERAGE, RESAMPLES, mean_bounds
from pipeline.captions.languages import ENGLISH, Language, language_rules, language_tag
from pipeline.evaluation import java
from pipeline.evaluation.measurement import Measurement, MetricUnavailableError, TokenizedCaptions
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.score_file import Interval, ScoredImage, ScoreFile
from shards.errors import InputError, SettingsError
from shards.versions import library_versions

Ptb = Literal["builtin", "java"]
JAVA_TOKENIZER = "Stanford PTBTokenizer, CoreNLP 3.4.1"
Tokens = list[list[str]]
Measurements = dict[str, Measurement]


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How captions are scored.

    Attributes:
        ptb: The tokenizer of English captions: the built-in one, or the Stanford one, which needs Java.
        java: Compute METEOR and SPICE where Java and their jars are available.
        seed: Of the bootstrap intervals.

    Raises:
        InputError: There is no such tokenizer, or no Java or jar for it.
    """

    ptb: Ptb = "builtin"
    java: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ptb not in get_args(Ptb):
            raise SettingsError(f"`ptb` {self.ptb}: must be one of {', '.join(get_args(Ptb))}.")
        if self.ptb == "java":
            try:
                java.require(*java.NEEDS["tokenizer"], what="The Java tokenizer")
            except java.JavaError as error:
                raise InputError(f"`ptb` java: {error} Or omit `ptb`: the built-in tokenizer needs no Java.") from None

    def check_language(self, language: str) -> None:
        """Check that captions in this language can be scored so.

        Raises:
            InputError: A package that splits them is missing, or the Stanford tokenizer is asked to split another language than English.
        """
        rules = language_rules(language)
        rules.check_installed()
        if self.ptb == "java" and not rules.english:
            raise InputError(f"`ptb` java: it splits English, but the language of these captions is {language}. Omit `ptb`.")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """An image, the caption to be scored, and its references, at least one.

    Attributes:
        file_name: Empty where it is unknown.
        alternatives: All captions that decoding found, where there is more than one.
    """

    image_id: int
    file_name: str
    caption: str
    references: tuple[str, ...]
    alternatives: tuple[ScoredCaption, ...] = ()


def score_texts(
    images: Sequence[Prediction],
    *,
    split: str,
    made_by: dict[str, Any],
    language: str = ENGLISH,
    training: Collection[str] | None = None,
    notes: Sequence[str] = (),
    scoring: ScoringConfig = ScoringConfig(),
    report: Callable[[str], None] = lambda _: None,
) -> ScoreFile:
    """Score captions with all metrics of :data:`pipeline.evaluation.metrics.METRICS`.

    Args:
        made_by: Where the captions come from. The language, the tokenizer, the intervals' settings and library versions are added.
        language: Of captions and references. Its tokens are compared.
        training: The training captions as they were written, to tell which captions are novel; None: unknown.
        notes: Notes that come first in the score file.
        report: Takes a line for each step that takes a while.

    Raises:
        InputError: There are no images.
    """
    if not images:
        raise InputError("No image has both a caption and a reference: there is nothing to score.")
    all_notes = list(notes)
    rules = language_rules(language)
    captions, tokenizer = _tokenized(images, training, rules, scoring, all_notes, report)
    empty = sum(not words for words in captions.candidates)
    if empty:
        all_notes.append(f"{empty:,} of {len(images):,} captions contain no word: they score 0.")
    measured = _measured(captions, rules, scoring.java, all_notes, report)
    columns = {name: found.images.tolist() for name, found in measured.items()}
    return ScoreFile(
        split=split,
        made_by={
            **made_by,
            "language": language_tag(language),
            "tokenizer": tokenizer,
            "intervals": {"kind": "bootstrap over images, percentiles", "coverage": COVERAGE, "resamples": RESAMPLES, "seed": scoring.seed},
            "versions": library_versions("torch", "numpy", *rules.packages, "pycocoevalcap"),
        },
        scores=_intervals(measured, scoring.seed),
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
        notes=tuple(all_notes),
    )


def _tokenized(
    images: Sequence[Prediction],
    training: Collection[str] | None,
    rules: Language,
    scoring: ScoringConfig,
    notes: list[str],
    report: Callable[[str], None],
) -> tuple[TokenizedCaptions, str]:
    """All texts as tokens, and the tokenizer that was used: the built-in one where the Java tokenizer fails."""
    captions = [image.caption for image in images]
    written = [text for image in images for text in image.references]
    tokenizer = JAVA_TOKENIZER if scoring.ptb == "java" else rules.scored_rule
    if tokenizer == JAVA_TOKENIZER:
        try:
            report("Tokenizing with the Stanford tokenizer")
            # One stream of references and one of captions, as in pycocoevalcap.
            candidates, references = _java_tokens(captions), _java_tokens(written)
        except java.JavaError as error:
            notes.append(f"{error} The built-in tokenizer was used instead.")
            tokenizer = rules.scored_rule
    if tokenizer != JAVA_TOKENIZER:
        candidates, references = list(map(rules.scored, captions)), list(map(rules.scored, written))
    if not rules.english:
        notes.append(f"BLEU, ROUGE-L and CIDEr compare the tokens of {tokenizer}. Scores of other tokens, such as characters, differ.")
    known = None if training is None else _joined_training(training, tokenizer, rules, notes)
    return TokenizedCaptions(candidates=candidates, references=_grouped(references, images), training=known, seed=scoring.seed), tokenizer


def _java_tokens(texts: Sequence[str]) -> Tokens:
    return java.java_tokens([unicodedata.normalize("NFC", text) for text in texts])


def _grouped(tokens: Tokens, images: Sequence[Prediction]) -> list[Tokens]:
    following = iter(tokens)
    return [[next(following) for _ in image.references] for image in images]


def _joined_training(training: Collection[str], tokenizer: str, rules: Language, notes: list[str]) -> set[str]:
    if tokenizer == JAVA_TOKENIZER:
        try:
            return set(map(" ".join, _java_tokens(list(training))))
        except java.JavaError as error:
            notes.append(f"{error} Training captions were tokenized with the built-in tokenizer.")
    return {" ".join(rules.scored(text)) for text in training}


def _measured(captions: TokenizedCaptions, rules: Language, with_java: bool, notes: list[str], report: Callable[[str], None]) -> Measurements:
    """What each metric found, by name. Metrics that cannot be computed are noted."""
    measured = {}
    if not rules.english:
        left_out = ", ".join(metric.label for metric in METRICS.values() if metric.english)
        notes.append(f"Left out, because they know English words only: {left_out}.")
    for name, metric in METRICS.items():
        if (metric.java_files and not with_java) or (metric.english and not rules.english):
            continue
        try:
            if metric.java_files:
                java.require(*metric.java_files, what=metric.label)
                report(f"{metric.label}, in Java")
            found = metric.measure(captions)
        except MetricUnavailableError as error:
            notes.append(str(error))
            continue
        if found is not None:
            measured[name] = found
            notes.extend(found.notes)
    return measured


def _intervals(measured: Measurements, seed: int) -> dict[str, Interval]:
    """The split's score of each metric, with the bounds of its interval."""
    bounds = _bounds_of_means({name: found.images for name, found in measured.items() if found.bounds is None}, seed)
    intervals = {}
    for name, found in measured.items():
        value = found.value if found.value is not None else float(found.images[np.isfinite(found.images)].mean())
        low, high = (found.bounds or bounds[name]) if len(found.images) > 1 else (value, value)
        intervals[name] = Interval(value=value, low=low, high=high)
    return intervals


def _bounds_of_means(columns: dict[str, NDArray[np.float64]], seed: int) -> dict[str, tuple[float, float]]:
    """Bounds of means over images. Complete columns are resampled together; one with gaps is resampled over the images that have a score."""
    complete = {name: values for name, values in columns.items() if np.isfinite(values).all()}
    bounds = {name: mean_bounds(values[np.isfinite(values)][:, None], seed=seed) for name, values in columns.items() if name not in complete}
    found = {name: (float(low[0]), float(high[0])) for name, (low, high) in bounds.items()}
    if complete:
        lows, highs = mean_bounds(np.stack(list(complete.values()), axis=1), seed=seed)
        found |= dict(zip(complete, zip(lows.tolist(), highs.tolist(), strict=True), strict=True))
    return found
