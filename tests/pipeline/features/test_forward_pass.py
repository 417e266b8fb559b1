import numpy as np
import pytest

from pipeline.features.forward_pass import check_finite
from shards.errors import DamageError


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_image_with_a_number_that_is_none_is_named(bad: float) -> None:
    features = np.zeros((3, 2, 5), np.float16)
    check_finite(features, ["a", "b", "c"])
    features[1, 1, 4] = features[2, 0, 0] = bad
    with pytest.raises(DamageError, match=r"^b: the network's features contain NaN or inf.*`precision` fp32"):
        check_finite(features, ["a", "b", "c"])
