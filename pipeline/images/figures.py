"""Figures of images with text, drawn with matplotlib."""

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.images.fonts import choose_fonts
from shards.atomic import check_output_file, committed
from shards.errors import SettingsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision can tell apart ("Color universal design", 2008), without the yellow
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
COLUMNS = 4
# Where a line can end: after each Chinese or Japanese character, and after a word of another script with the spaces after it
_PIECE = re.compile("[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]\\s*|[^\\s\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]+\\s*|\\s+")
_NOT_FIRST = "。，、！？；：」』）】"
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
        raise SettingsError(f"`{setting}` {out}: a figure is written as {', '.join(FIGURE_SUFFIXES)}. Choose a name with one of these extensions.")
    check_output_file(out, setting)


def save_figure(figure: "Figure", out: Path, setting: str = "out") -> str | None:
    """Commit a figure under a name that :func:`check_figure_name` accepts.

    Returns:
        A line about characters that no font has, as :func:`pipeline.images.fonts.choose_fonts` returns it.

    Raises:
        ResourceError: Disk full, not allowed.
    """
    problem = choose_fonts(figure)
    with committed(out, setting) as temporary:
        figure.savefig(temporary, format=out.suffix[1:].lower(), dpi=100)
    return problem


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
    """The text with its lines wrapped at ``width`` columns; a Chinese, Japanese or Korean character has two.

    >>> wrapped("一只狗在草地上奔跑。", 12).splitlines()
    ['一只狗在草地', '上奔跑。']
    """
    return "\n".join(piece for line in text.splitlines() for piece in _wrapped_line(line, width))


def _wrapped_line(line: str, width: int) -> list[str]:
    if line.isascii():
        return textwrap.wrap(line, width) or [""]
    lines, current = [], ""
    pieces = (piece[at : at + width // 2] for piece in _PIECE.findall(line) for at in range(0, len(piece), width // 2))  # Thai has no spaces
    for piece in pieces:
        columns = sum(map(_columns, current + piece.rstrip()))
        if columns > width and current.strip() and piece[0] not in _NOT_FIRST:
            lines.append(current.strip())
            current = ""
        current += piece
    return [*lines, current.strip()]


def _columns(character: str) -> int:
    return 0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
