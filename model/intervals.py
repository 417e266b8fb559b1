"""Bootstrap intervals (Efron and Tibshirani, 1993, "An introduction to the bootstrap", chapter 13: percentiles).

Images are drawn anew, as many as there are, with replacement; the figure is computed of each such draw; the interval holds the middle
95% of them. It says how far the figure depends on which images happen to be in the split, and nothing about another training's luck.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
COVERAGE = 0.95
# Draws that are held at a time: 100 of 40,000 images are 32 MB.
_CHUNK = 100


def resampled_sums(values: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Sums over images that were drawn anew.

    Args:
        values: float64 (images, columns).

    Returns:
        float64 (resamples, columns). The same seed and number of images draw the same images.
    """
    images = len(values)
    generator = np.random.default_rng(seed)
    sums = []
    for start in range(0, resamples, _CHUNK):
        draws = generator.integers(images, size=(min(_CHUNK, resamples - start), images))
        # (draws, images): how often each image was drawn
        times = np.stack([np.bincount(draw, minlength=images) for draw in draws]).astype(np.float64)
        sums.append(times @ values)
    return np.concatenate(sums)


def bounds(figures: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The bounds, float64 (columns,) each, between which the middle 95% of the resampled figures, float64 (resamples, columns), lie."""
    low, high = np.quantile(figures, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
    return low, high


def mean_bounds(values: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of the means over images of ``values``, float64 (images, columns)."""
    return bounds(resampled_sums(values, resamples=resamples, seed=seed) / len(values))


def statistic_bounds(
    values: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], list[float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of figures that ``statistic`` computes of the all_reduce_sum ``values``, float64 (images, columns)."""
    sums = resampled_sums(values, resamples=resamples, seed=seed)
    return bounds(np.array([statistic(row) for row in sums]))
