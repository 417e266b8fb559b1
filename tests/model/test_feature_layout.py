"""Layouts of features: their names, and the positions that they make of a feature map or of tokens."""

import pytest
import torch

from model.feature_layout import GridHead, check_layout, mean_of_positions


@pytest.mark.parametrize("layout", ["pooled", "regions", "grid", "grid:1", "grid:64"])
def test_layouts_are_accepted(layout: str) -> None:
    assert check_layout(layout) == layout


@pytest.mark.parametrize("layout", ["", "grids", "grid:", "grid:0", "grid:65", "grid:-3", "grid:7x7", "pooled:2", "grid:\u0663"])
def test_other_names_are_refused_with_the_value(layout: str) -> None:
    with pytest.raises(ValueError, match="must be pooled, grid or grid:N with N from 1 to 64"):
        check_layout(layout)


def test_a_feature_map_becomes_its_positions_row_by_row() -> None:
    maps = torch.arange(2 * 3 * 2 * 2.0).view(2, 3, 2, 2)
    expected = [[[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]], [[12, 16, 20], [13, 17, 21], [14, 18, 22], [15, 19, 23]]]
    assert GridHead("grid")(maps).tolist() == expected
    assert GridHead("grid", channels_last=True)(maps.permute(0, 2, 3, 1)).tolist() == expected
    assert GridHead("grid:1")(maps).tolist() == [[[1.5, 5.5, 9.5]], [[13.5, 17.5, 21.5]]]


def test_tokens_lose_those_before_the_patches_and_are_averaged_as_a_square() -> None:
    tokens = torch.arange(17.0).view(1, 17, 1)
    assert GridHead("grid", prefix_tokens=1)(tokens).flatten().tolist() == list(range(1, 17))
    assert GridHead("grid:2", prefix_tokens=1)(tokens).flatten().tolist() == [3.5, 5.5, 11.5, 13.5]
    assert GridHead("grid:4", prefix_tokens=1)(tokens).shape == (1, 16, 1)


def test_positions_that_are_no_square_have_no_smaller_grid() -> None:
    with pytest.raises(ValueError, match="12 positions are no square grid, which grid:2 needs"):
        GridHead("grid:2")(torch.zeros(1, 12, 3))


@pytest.mark.parametrize("output", [[torch.zeros(1, 5, 3)], torch.zeros(1, 3), torch.zeros(1, 2, 3)])
def test_outputs_without_a_grid_are_refused(output: object) -> None:
    with pytest.raises(ValueError, match=r"^the network's output (is neither one feature map nor|has no tokens)"):
        GridHead("grid", prefix_tokens=1)(output)


def test_the_mean_counts_real_positions_alone() -> None:
    features = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [6.0]]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert mean_of_positions(features, mask).tolist() == [[[2.0]], [[4.0]]]
    assert mean_of_positions(features[1:]).tolist() == [[[4.0]]]
    one = torch.tensor([[[7.0]]], dtype=torch.float16)
    assert mean_of_positions(one).tolist() == [[[7.0]]]
