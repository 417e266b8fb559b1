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


class GridHead(nn.Module):
    """A network's last feature map, or its tokens -> features in a grid's layout.

    Args:
        layout: ``grid`` or ``grid:N``.
        prefix_tokens: How many tokens, such as a class token, come before those of the patches.
        channels_last: Whether a feature map is (images, height, width, dim).

    Raises:
        ValueError: Not a layout of a grid.
    """

    def __init__(self, layout: str, *, prefix_tokens: int = 0, channels_last: bool = False) -> None:
        super().__init__()
        self.layout, self.side = layout, grid_side(layout)
        self.prefix_tokens, self.channels_last = prefix_tokens, channels_last

    def forward(self, features: Tensor) -> Tensor:
        """Positions row by row.

        Args:
            features: float (images, dim, height, width) or (images, tokens, dim).

        Returns:
            float (images, positions, dim).

        Raises:
            ValueError: There is no grid in the output of this network.
        """
        if not isinstance(features, Tensor) or features.dim() not in (3, 4):
            raise ValueError("the network's output is neither one feature map nor the tokens of patches")
        if features.dim() == 3:
            features = features[:, self.prefix_tokens :]
            if features.shape[1] < 2:
                raise ValueError("the network's output has no tokens of patches")
            if self.side is None:
                return features
            features = self._as_square_map(features)
        elif self.channels_last:
            features = features.permute(0, 3, 1, 2)
        if self.side is not None:
            features = functional.adaptive_avg_pool2d(features, self.side)
        return features.flatten(2).transpose(1, 2)

    def _as_square_map(self, tokens: Tensor) -> Tensor:
        """Float (images, side * side, dim) -> (images, dim, side, side)."""
        images, positions, dim = tokens.shape
        side = math.isqrt(positions)
        if side * side != positions:
            raise ValueError(f"the network's {positions} positions are no square grid, which {self.layout} needs")
        return tokens.transpose(1, 2).reshape(images, dim, side, side)


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
