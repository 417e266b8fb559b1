"""Images with their captions as one picture, in a file or in a window."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.captioning.inputs import image_bytes
from pipeline.images.decode import decode_image
from pipeline.images.figures import check_figure_name, draw_image_grid, image_grid, save_figure
from pipeline.images.fonts import choose_fonts
from shards.errors import InputError, SettingsError

LONGEST_SIDE = 800
MAX_SHOWN = 100


def draw_captions(pictures: Sequence[tuple[str, str]], out: Path | None) -> str | None:
    """Draw images with a text above each, to a file or in a window.

    Args:
        pictures: (image file or URL, text), from one to :data:`MAX_SHOWN` of them.
        out: A .png, .jpg, .pdf or .svg file; None opens a window.

    Returns:
        A line about characters that no font has, as :func:`pipeline.images.fonts.choose_fonts` returns it.

    Raises:
        InputError: See :func:`check_can_draw`.
        ImageError: A file is not an image.
    """
    check_can_draw(out, [name for name, _ in pictures])
    shown = [(thumbnail(name), text) for name, text in pictures]
    if out is not None:
        return save_figure(image_grid(shown), out)
    from matplotlib import pyplot

    figure = pyplot.figure(layout="constrained")
    draw_image_grid(figure, shown)
    problem = choose_fonts(figure)
    pyplot.show()
    pyplot.close("all")
    return problem


def check_can_draw(out: Path | None, images: Iterable[str]) -> None:
    """Check that :func:`draw_captions` can write its picture, before captions are computed for it.

    Raises:
        InputError: ``out`` has another file name extension or is one of the images, or there is no screen for a window.
    """
    if out is not None:
        check_figure_name(out)
        same = os.path.abspath  # Path.resolve() raises for invalid file names
        if any(same(name) == same(out) for name in images):
            raise SettingsError(f"`out` {out}: this is one of the images to caption, which would be overwritten. Choose another name.")
    elif sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise InputError("`show`: there is no screen here to open a window on. Write a picture instead, with `out` captions.png.")


def thumbnail(name: str) -> NDArray[np.uint8]:
    """An image with its aspect ratio, at most ``LONGEST_SIDE`` pixels a side, uint8 (height, width, 3)."""
    image = decode_image(image_bytes(name), name).image
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image, dtype=np.uint8)
