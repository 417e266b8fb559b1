import numpy as np
import pytest

from model.intervals import mean_bounds, resampled_sums, statistic_bounds


def test_a_resample_has_as_many_images_as_the_split() -> None:
    sums = resampled_sums(np.ones((50, 2)), resamples=7)
    assert sums.tolist() == [[50.0, 50.0]] * 7


def test_the_interval_of_a_mean_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, (4000, 1))
    low, high = mean_bounds(values)
    expected = 1.96 * values.std() / np.sqrt(len(values))
    assert low[0] == pytest.approx(values.mean() - expected, abs=0.15 * expected)
    assert high[0] == pytest.approx(values.mean() + expected, abs=0.15 * expected)


def test_the_interval_covers_the_truth_about_as_often_as_stated() -> None:
    covered = 0
    for seed in range(200):
        low, high = mean_bounds(np.random.default_rng([9, seed]).exponential(1.0, (150, 1)), resamples=400, seed=seed)
        covered += low[0] <= 1.0 <= high[0]
    assert 175 <= covered <= 200


def test_the_interval_depends_on_the_seed_only() -> None:
    values = np.random.default_rng(0).random((60, 3))
    first, again, other = (mean_bounds(values, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_statistic_is_computed_from_the_sums_of_each_draw() -> None:
    values = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 1.0]])
    sums = resampled_sums(values, seed=4)
    low, high = statistic_bounds(values, lambda row: [float(row[0] / row[1])], seed=4)
    assert (low[0], high[0]) == tuple(np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975]))


def test_one_image_has_no_spread() -> None:
    low, high = mean_bounds(np.array([[0.25]]))
    assert low[0] == high[0] == 0.25
