"""The layout of an image's features: one pooled vector, or one vector for each position of a grid.

A layout is written ``pooled``; ``grid``, the positions of the network's last feature map, or a transformer's patches; or ``grid:N``, those
averaged to N x N positions (adaptive average pooling). Imported features of the parts of images have the layout ``regions``.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

POOLED, GRID, REGIONS = "pooled", "grid", "regions"
MAX_SIDE = 64


def grid_side(layout: str) -> int | None:
    """N of ``grid:N``; None for ``grid``, the network's own grid.

    Raises:
        ValueError: Not a layout of a grid.

    >>> grid_side("grid:7"), grid_side("grid")
    (7, None)
    """
    name, colon, side = layout.partition(":")
    if name != GRID or bool(colon) != bool(side) or (side and not (side.isascii() and side.isdigit() and 1 <= int(side) <= MAX_SIDE)):
        raise ValueError(f"{layout!r} is not a layout of features: it must be {POOLED}, {GRID} or {GRID}:N with N from 1 to {MAX_SIDE}")
    return int(side) if side else None


def check_layout(layout: str) -> str:
    """Return ``layout`` if an artefact may record it; raises ValueError otherwise."""
    if layout not in (POOLED, REGIONS):
        grid_side(layout)
    return layout


def laid_out(features: Tensor, layout: str) -> Tensor:
    """A grid's features in its layout.

    Args:
        features: float (images, positions, dim), the positions row by row.
        layout: ``grid`` or ``grid:N``.

    Returns:
        float (images, N * N, dim), or ``features``.

    Raises:
        ValueError: ``grid:N`` of positions that are no square.
    """
    side = grid_side(layout)
    images, positions, dim = features.shape
    if side is None or positions == side * side:
        return features
    own = math.isqrt(positions)
    if own * own != positions:
        raise ValueError(f"the network's {positions} positions are no square grid, which {layout} needs")
    square = features.transpose(1, 2).reshape(images, dim, own, own)
    return functional.adaptive_avg_pool2d(square, side).flatten(2).transpose(1, 2)


class GridHead(nn.Module):
    """A network's last feature map, or its tokens -> features in a grid's layout.

    Args:
        layout: ``grid`` or ``grid:N``.
        prefix_tokens: How many tokens, such as a class token, come before those of the patches.
        channels_last: Whether a feature map is (images, height, width, dim).
    """

    def __init__(self, layout: str, *, prefix_tokens: int = 0, channels_last: bool = False) -> None:
        super().__init__()
        self.layout, self.prefix_tokens, self.channels_last = layout, prefix_tokens, channels_last

    def forward(self, features: Tensor) -> Tensor:
        """Float (images, dim, height, width) or (images, positions, dim) -> float (images, positions, dim), row by row."""
        if features.dim() == 4:
            if self.channels_last:
                features = features.permute(0, 3, 1, 2)
            side = grid_side(self.layout)
            if side is not None:
                features = functional.adaptive_avg_pool2d(features, side)
            return features.flatten(2).transpose(1, 2)
        return laid_out(features[:, self.prefix_tokens :], self.layout)


def mean_of_positions(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean over the real positions, float32 (images, 1, dim), of float (images, positions, dim); one position is returned as it is.

    Args:
        mask: bool (images, positions): which positions are real; None: all of them.
    """
    if features.shape[1] == 1:
        return features.float()
    if mask is None:
        return features.float().mean(dim=1, keepdim=True)
    real = mask.unsqueeze(2).to(torch.float32)
    return (features.float() * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)
