import numpy as np
import pytest

from model.intervals import mean_bounds
from pipeline.evaluation.score_file import Interval
from pipeline.reporting.differences import paired_difference


def test_the_interval_of_a_difference_is_that_of_the_normal_approximation_and_pairs_images() -> None:
    random = np.random.default_rng(3)
    before = random.gamma(1.5, 0.6, 2000)
    after = before + random.normal(0.02, 0.1, 2000)
    found = paired_difference("cider", before, after)
    gains = after - before
    width = 1.96 * gains.std() / 2000**0.5
    assert found.change.value == pytest.approx(gains.mean())
    assert (found.change.low, found.change.high) == pytest.approx((gains.mean() - width, gains.mean() + width), abs=0.1 * width)
    assert found.higher + found.lower + found.equal == found.images == 2000
    assert paired_difference("cider", before, after) == found


def test_the_difference_from_a_run_that_scores_nothing_has_the_interval_of_the_score_itself() -> None:
    scores = np.random.default_rng(4).gamma(1.5, 0.6, 300)
    (low,), (high,) = mean_bounds(scores[:, None])
    assert paired_difference("cider", np.zeros(300), scores).change == Interval(value=float(scores.mean()), low=low, high=high)
