"""What people would rather look at than read: photographs with their captions, by matplotlib."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shards.atomic import committed
from shards.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people tell apart whatever colours they see ("Color universal design", 2008), without the yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
COLUMNS = 4


def check_picture_name(out: Path, setting: str = "out") -> None:
    """Refuse what is not called like a picture; ``setting`` is where the name came from.

    Raises:
        InputError: Another ending than those that are written.
    """
    if out.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        raise InputError(f"`{setting}` {out}: a picture is written as .png, .jpg, .pdf or .svg.")


def save_figure(figure: "Figure", out: Path, setting: str = "out") -> None:
    """Commit a figure under a name that :func:`check_picture_name` has passed.

    Raises:
        ResourceError: Disk full, not allowed.
    """
    with committed(out, setting) as temporary:
        figure.savefig(temporary, format=out.suffix[1:].lower(), dpi=100)


def picture_grid(pictures: Sequence[tuple[NDArray[np.uint8], str]]) -> "Figure":
    """A figure of pictures, uint8 (height, width, 3), with a text above each; at least one."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    fill_grid(figure, pictures)
    return figure


def fill_grid(figure: "Figure", pictures: Sequence[tuple[NDArray[np.uint8], str]]) -> None:
    """Give a figure the size and content of :func:`picture_grid`."""
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    figure.set_size_inches(3.8 * columns, 4.0 * rows)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (pixels, text) in zip(axes.flat, pictures, strict=False):
        axis.imshow(pixels)
        axis.set_title(wrapped(text), fontsize=9, parse_math=False)


def wrapped(text: str, width: int = 46) -> str:
    """Every line of ``text`` broken at ``width`` characters."""
    return "\n".join(piece for line in text.splitlines() for piece in textwrap.wrap(line, width) or [""])
