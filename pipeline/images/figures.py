"""Figures of images with text, drawn with matplotlib."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shards.atomic import check_output_file, committed
from shards.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision can tell apart ("Color universal design", 2008), without the yellow
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
COLUMNS = 4
FIGURE_SUFFIXES = (".png", ".jpg", ".pdf", ".svg")


def check_figure_name(out: Path, setting: str = "out") -> None:
    """Refuse a file name whose extension is not that of a figure, or that cannot be written.

    Args:
        out: The file name.
        setting: The setting that chooses it, for messages.

    Raises:
        InputError: The extension is not one of ``FIGURE_SUFFIXES``.
        ResourceError: There is something else than a file.
    """
    if out.suffix.lower() not in FIGURE_SUFFIXES:
        raise InputError(f"`{setting}` {out}: a figure is written as {', '.join(FIGURE_SUFFIXES)}. Choose a name with one of these extensions.")
    check_output_file(out, setting)


def save_figure(figure: "Figure", out: Path, setting: str = "out") -> None:
    """Commit a figure under a name that :func:`check_figure_name` accepts.

    Raises:
        ResourceError: Disk full, not allowed.
    """
    with committed(out, setting) as temporary:
        figure.savefig(temporary, format=out.suffix[1:].lower(), dpi=100)


def image_grid(images: Sequence[tuple[NDArray[np.uint8], str]]) -> "Figure":
    """A figure of images in rows and columns.

    Args:
        images: At least one (pixels, text): uint8 (height, width, 3), and the text above it.
    """
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    draw_image_grid(figure, images)
    return figure


def draw_image_grid(figure: "Figure", images: Sequence[tuple[NDArray[np.uint8], str]]) -> None:
    """Draw images as in :func:`image_grid` into a figure, and set the figure's size."""
    columns = min(COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure.set_size_inches(3.8 * columns, 4.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (pixels, text) in zip(axes.flat, images, strict=False):
        axis.imshow(pixels)
        axis.set_title(wrapped(text), fontsize=9, parse_math=False)


def wrapped(text: str, width: int = 46) -> str:
    """The text with its lines wrapped at ``width`` characters."""
    return "\n".join(piece for line in text.splitlines() for piece in textwrap.wrap(line, width) or [""])
