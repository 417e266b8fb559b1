"""What a metric is: a function from tokenized captions to a score for each image and one for the split, and how the score is shown."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class MetricUnavailableError(Exception):
    """A metric cannot be computed here. The message is a line for the score file's notes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedCaptions:
    """One caption per image, with its references: what a metric reads.

    Attributes:
        candidates: For each image, the tokens of its caption.
        references: For each image, the tokens of its references, at least one.
        training: The training captions' tokens, joined by spaces; None where they are unknown.
        seed: Of the bootstrap. Metrics that resample images with the same seed draw the same images.
    """

    candidates: Sequence[Sequence[str]]
    references: Sequence[Sequence[Sequence[str]]]
    training: Collection[str] | None = None
    seed: int = 0
    _computed: dict[Callable[["TokenizedCaptions"], Any], Any] = field(default_factory=dict, init=False, repr=False)

    def once(self, compute: Callable[["TokenizedCaptions"], T]) -> T:
        """``compute(self)``, computed at the first call: for metrics that share work, such as BLEU-1 to BLEU-4."""
        if compute not in self._computed:
            self._computed[compute] = compute(self)
        return cast("T", self._computed[compute])

    def joined(self) -> tuple[list[str], list[list[str]]]:
        """Candidates and references with each text's tokens joined by spaces."""
        return list(map(" ".join, self.candidates)), [list(map(" ".join, group)) for group in self.references]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a metric found.

    Attributes:
        images: float64 (images,): each image's own score; NaN where it has none.
        value: The split's score; None: the mean of the images' scores.
        bounds: Of the split's 95% interval; None: those of the mean over images, by the bootstrap.
        notes: Lines for the score file.
    """

    images: NDArray[np.float64]
    value: float | None = None
    bounds: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric and how its score is shown.

    Attributes:
        label: Its name in a report, such as "BLEU-4".
        measure: Computes it; None where it does not apply. May raise :class:`MetricUnavailableError`.
        mean: Whether the split's score is the mean of the images' scores: then a report compares two runs image by image.
        descriptive: Whether a higher score is neither better nor worse.
        share: Whether the score is a share of the captions, shown in percent.
        english: Whether it knows English words, and is left out for captions in other languages.
        java_files: Jars and data that it needs besides Java, relative to pycocoevalcap's folder; empty: it does not run in Java.
    """

    label: str
    measure: Callable[[TokenizedCaptions], Measurement | None]
    mean: bool = True
    descriptive: bool = False
    share: bool = False
    english: bool = False
    java_files: tuple[str, ...] = ()
