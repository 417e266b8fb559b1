"""Views: which crops of an image pass through the frozen network, so that cached features can be augmented too.

A view is a crop box in the resized image, possibly mirrored. It depends only on the position of the image in its split, so every machine
cuts the same views, whatever the shards, batches or workers.
"""

import re
from dataclasses import dataclass

import numpy as np

from shards.errors import SettingsError

CENTER = "center"
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
FLIPPED = "-flipped"
MAX_RANDOM = 100
_RANDOM = re.compile(r"random:([1-9]\d{0,2})")


@dataclass(frozen=True, kw_only=True)
class CropBox:
    """A view's first row and column in pixels, and whether it is mirrored left to right."""

    top: int
    left: int
    flipped: bool


def view_names(views: str) -> tuple[str, ...]:
    """The names of an image's views; the first one is always the center crop, which captioning uses.

    Args:
        views: ``center``; ``flip``: the center crop and its mirror image; ``ten-crop``: the center, the corners and their mirror images
            (Krizhevsky et al., 2012, "ImageNet classification with deep convolutional neural networks", section 4.1); ``random:K``: the
            center and K random crops, mirrored with probability 1/2.

    Raises:
        InputError: Anything else.

    >>> view_names("flip")
    ('center', 'center-flipped')
    """
    if views == CENTER:
        return (CENTER,)
    if views == "flip":
        return (CENTER, CENTER + FLIPPED)
    if views == "ten-crop":
        crops = (CENTER, *CORNERS)
        return (*crops, *(crop + FLIPPED for crop in crops))
    match = _RANDOM.fullmatch(views)
    if match is None or int(match[1]) > MAX_RANDOM:
        raise SettingsError(f"`views` {views}: must be center, flip, ten-crop or random:K with K from 1 to {MAX_RANDOM}.")
    return (CENTER, *(f"random-{number}" for number in range(1, int(match[1]) + 1)))


def crop_boxes(names: tuple[str, ...], *, position: int, height: int, width: int, crop: int) -> list[CropBox]:
    """The crop boxes of an image's views.

    Args:
        names: From :func:`view_names`.
        position: The image's position in its split, which is its key; random views come from PCG64 seeded with (position, view).
        height, width: Of the resized image, in pixels, at least ``crop``.
        crop: Side of a view.
    """
    return [_crop_box(name, position, height - crop, width - crop) for name in names]


def _crop_box(name: str, position: int, rest_down: int, rest_right: int) -> CropBox:
    if name.startswith("random-"):
        top, left, flip = np.random.default_rng([position, int(name.removeprefix("random-"))]).random(3)
        return CropBox(top=int(top * (rest_down + 1)), left=int(left * (rest_right + 1)), flipped=flip < 0.5)
    crop = name.removesuffix(FLIPPED)
    top = {CENTER: rest_down // 2}.get(crop, rest_down if "bottom" in crop else 0)
    left = {CENTER: rest_right // 2}.get(crop, rest_right if "right" in crop else 0)
    return CropBox(top=top, left=left, flipped=name.endswith(FLIPPED))
