"""Bootstrap intervals (Efron and Tibshirani, 1993, "An introduction to the bootstrap", chapter 13: percentiles).

As many images as the split has are drawn with replacement, and the figure is computed for each draw. The interval holds the middle 95% of
these figures. It shows how far the figure depends on the choice of images, and nothing about the variation between trainings.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
COVERAGE = 0.95
# Draws in memory at a time: 100 draws of 40,000 images take 32 MB.
_CHUNK = 100


def resampled_sums(values: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Sums over resampled images.

    Args:
        values: float64 (images, columns).

    Returns:
        float64 (resamples, columns). The same seed and number of images give the same draws.
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
    """Bounds of the middle 95% of resampled figures, float64 (resamples, columns): low and high, float64 (columns,) each."""
    low, high = np.quantile(figures, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0)
    return low, high


def mean_bounds(values: NDArray[np.float64], *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of the means over images of ``values``, float64 (images, columns)."""
    return bounds(resampled_sums(values, resamples=resamples, seed=seed) / len(values))


def statistic_bounds(
    values: NDArray[np.float64], statistic: Callable[[NDArray[np.float64]], list[float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of figures that ``statistic`` computes from the sums over images of ``values``, float64 (images, columns)."""
    sums = resampled_sums(values, resamples=resamples, seed=seed)
    return bounds(np.array([statistic(row) for row in sums]))
