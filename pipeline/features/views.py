"""Which crops of an image go through the frozen network: the centre, and others, so that augmentation survives caching.

A view is a place in the resized image and whether it is mirrored. It depends on the image's place in its split alone, so that the
same views are cut on any machine, whatever the shards, batches or workers.
"""

import re
from dataclasses import dataclass

import numpy as np

from shards.errors import InputError

CENTER = "center"
CORNERS = ("top-left", "top-right", "bottom-left", "bottom-right")
FLIPPED = "-flipped"
MAX_RANDOM = 100
_RANDOM = re.compile(r"random:([1-9]\d{0,2})")


@dataclass(frozen=True, kw_only=True)
class CropBox:
    """Where a view lies: its first row and column in pixels, and whether it is mirrored left to right."""

    top: int
    left: int
    flipped: bool


def view_names(views: str) -> tuple[str, ...]:
    """The views that ``--views`` asks for; the first is always the centre, which captioning uses.

    Args:
        views: ``center``; ``flip``: the centre and its mirror image; ``ten-crop``: centre and corners and their mirror images (as
            Krizhevsky et al. tested AlexNet, NeurIPS 2012, section 4.1); ``random:K``: the centre and K random crops, each mirrored or not.

    Raises:
        InputError: It is none of these.

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
        raise InputError(f"--views {views}: must be center, flip, ten-crop or random:K with K from 1 to {MAX_RANDOM}.")
    return (CENTER, *(f"random-{number}" for number in range(1, int(match[1]) + 1)))


def places(names: tuple[str, ...], *, position: int, height: int, width: int, crop: int) -> list[CropBox]:
    """Where an image's views lie.

    Args:
        names: From :func:`view_names`.
        position: The image's place in its split, which its key says; random views are drawn from PCG64 seeded with (position, view).
        height, width: Of the resized image, in pixels, at least ``crop``.
        crop: Side of a view.
    """
    return [_place(name, position, height - crop, width - crop) for name in names]


def _place(name: str, position: int, rest_down: int, rest_right: int) -> CropBox:
    if name.startswith("random-"):
        top, left, flip = np.random.default_rng([position, int(name.removeprefix("random-"))]).random(3)
        return CropBox(top=int(top * (rest_down + 1)), left=int(left * (rest_right + 1)), flipped=flip < 0.5)
    crop = name.removesuffix(FLIPPED)
    top = {CENTER: rest_down // 2}.get(crop, rest_down if "bottom" in crop else 0)
    left = {CENTER: rest_right // 2}.get(crop, rest_right if "right" in crop else 0)
    return CropBox(top=top, left=left, flipped=name.endswith(FLIPPED))
