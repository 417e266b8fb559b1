import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.features.views import CropBox, crop_boxes, view_names
from shards.errors import InputError


def test_ten_crops_lie_in_the_centre_and_the_corners_each_mirrored_too() -> None:
    names = view_names("ten-crop")
    found = crop_boxes(names, position=3, height=256, width=340, crop=224)
    plain = [(16, 58), (0, 0), (0, 116), (32, 0), (32, 116)]
    assert names[:5] == ("center", "top-left", "top-right", "bottom-left", "bottom-right")
    assert found == [CropBox(top=t, left=x, flipped=flipped) for flipped in (False, True) for t, x in plain]


def test_an_odd_rest_is_smaller_above_and_left_as_in_the_centre_crop() -> None:
    assert crop_boxes(("center",), position=0, height=11, width=8, crop=4) == [CropBox(top=3, left=2, flipped=False)]


def test_the_centre_is_always_first() -> None:
    assert {view_names(views)[0] for views in ("center", "flip", "ten-crop", "random:7")} == {"center"}
    assert len(view_names("random:7")) == 8


@given(position=st.integers(0, 10**9), height=st.integers(10, 300), width=st.integers(10, 300), crop=st.integers(1, 10))
def test_every_view_lies_inside_the_image_and_is_the_same_again(position: int, height: int, width: int, crop: int) -> None:
    for views in ("flip", "ten-crop", "random:5"):
        found = crop_boxes(view_names(views), position=position, height=height, width=width, crop=crop)
        assert all(0 <= p.top <= height - crop and 0 <= p.left <= width - crop for p in found)
        assert found == crop_boxes(view_names(views), position=position, height=height, width=width, crop=crop)


def test_random_views_differ_between_images_and_views_and_reach_every_place() -> None:
    found = [place for position in range(300) for place in crop_boxes(view_names("random:2"), position=position, height=12, width=11, crop=10)[1:]]
    assert {(p.top, p.left, p.flipped) for p in found} == {(t, x, f) for t in range(3) for x in range(2) for f in (False, True)}


@pytest.mark.parametrize("views", ["", "five-crop", "random", "random:0", "random:101", "random:-1", "random:2x", "center,flip"])
def test_other_views_are_refused_by_name(views: str) -> None:
    with pytest.raises(InputError, match=f"`views` {re.escape(views)}: must be"):
        view_names(views)
