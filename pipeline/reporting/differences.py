"""How scores change from one run to another over the same images, with bootstrap intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.intervals import mean_bounds
from pipeline.evaluation.metrics import METRICS, display_order
from pipeline.evaluation.score_file import Interval
from pipeline.reporting.reported_runs import ImageRow


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The change of a score from one run to another over their common images.

    Attributes:
        name: The score's name.
        change: The mean difference, with its 95% interval.
        images: Number of common images.
        higher, lower, equal: Number of images by the sign of their change.
    """

    name: str
    change: Interval
    images: int
    higher: int
    lower: int
    equal: int


def paired_difference(name: str, before: NDArray[np.float64], after: NDArray[np.float64], *, seed: int = 0) -> Difference:
    """The change of a score from one run to another over the same images, with the percentile interval of a paired bootstrap.

    Images are sampled with replacement, as for the intervals of the scores themselves (:mod:`model.intervals`), and the two scores of an image
    stay together (Koehn, "Statistical Significance Tests for Machine Translation Evaluation", 2004, without its test).

    Args:
        name: The score's name.
        before, after: float64 (images,): scores of the same images, at least one.
        seed: Of the bootstrap.

    >>> paired_difference("cider", np.zeros(4), np.ones(4)).change
    Interval(value=1.0, low=1.0, high=1.0)
    """
    gains = after - before
    (low,), (high,) = (bound.tolist() for bound in mean_bounds(gains[:, None], seed=seed))
    higher, lower = int((gains > 1e-9).sum()), int((gains < -1e-9).sum())
    change = Interval(value=float(gains.mean()), low=low, high=high)
    return Difference(name=name, change=change, images=len(gains), higher=higher, lower=lower, equal=len(gains) - higher - lower)


def score_differences(rows: Sequence[ImageRow], column: int) -> Iterator[Difference]:
    """The differences between the run at ``column`` and the first run, for each metric that both have.

    The metrics are those whose score of a split is the mean over its images, so that the difference can be resampled image by image.
    """
    pairs = [(row[0].scores, row[column].scores) for row in rows if row[0] is not None and (row[column]) is not None]  # type: ignore[union-attr]
    for name in display_order(name for name, metric in METRICS.items() if metric.mean and not metric.descriptive):
        both = [(a[name], b[name]) for a, b in pairs if name in a and name in b]
        if both:
            before, after = np.array(both, dtype=np.float64).T  # (2, images)
            yield paired_difference(name, before, after)
