"""Pixels -> features: the one place where the frozen network runs.

Caching, raw training, captioning and evaluation all call :func:`extract_features`, so that they see the same numbers.
"""

import torch
from torch import Tensor

from model.encoder import FrozenBackbone


def extract_features(frozen: FrozenBackbone, images: Tensor, *, batch_size: int | None = None) -> Tensor:
    """Run the frozen network on cropped images, and round its features to float16, as feature files store them.

    Args:
        frozen: The network.
        images: uint8 (..., crop, crop, 3) on the network's device, with one or more leading dimensions, such as (images,) or
            (images, views). There has to be at least one image.
        batch_size: Images per forward pass; by default all of them.

    Returns:
        float16 (..., positions, dim) on the network's device.
    """
    flat = images.flatten(0, -4)
    features = torch.cat([frozen(piece).half() for piece in torch.split(flat, batch_size or len(flat))])
    return features.view(*images.shape[:-3], *features.shape[1:])
