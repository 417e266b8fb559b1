"""What people would rather look at than read: photographs with their captions, by matplotlib."""

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.images import decode_image, read_image_file
from shards.atomic import committed
from shards.errors import InputError

COLUMNS = 4
LONGEST_SIDE = 800


def draw_captions(pictures: Sequence[tuple[Path, str]], out: Path | None) -> None:
    """Draw photographs with a text above each: into a file, or in a window.

    Args:
        pictures: (image file, text), at least one.
        out: A .png, .jpg, .pdf or .svg file; None opens a window.

    Raises:
        InputError: ``out`` has another ending, or there is no screen for a window.
        ImageError: A file is no image.
    """
    if out is not None and out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        raise InputError(f"--out {out}: a picture is written as .png, .jpg, .pdf or .svg.")
    if out is None and sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise InputError("--show: there is no screen here to open a window on. Write a picture instead: --show --out captions.png")
    import matplotlib

    if out is not None:
        matplotlib.use("agg")
    from matplotlib import pyplot

    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.8 * columns, 4.0 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (path, text) in zip(axes.flat, pictures, strict=False):
        axis.imshow(thumbnail(path))
        axis.set_title(wrapped(text), fontsize=9, parse_math=False)
    if out is None:
        pyplot.show()
    else:
        with committed(out) as temporary:
            figure.savefig(temporary, format=out.suffix[1:].lower(), dpi=100)
    pyplot.close(figure)


def wrapped(text: str, width: int = 46) -> str:
    """Every line of ``text`` broken at ``width`` characters."""
    return "\n".join(piece for line in text.splitlines() for piece in textwrap.wrap(line, width) or [""])


def thumbnail(path: Path) -> NDArray[np.uint8]:
    """A photograph in its own shape, at most ``LONGEST_SIDE`` pixels a side, uint8 (height, width, 3)."""
    image = decode_image(read_image_file(path), str(path)).image
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image, dtype=np.uint8)
