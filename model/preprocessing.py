"""Pixels -> the network's input. Caching, evaluation, captioning and training share these functions.

Pixels stay uint8 until they are on the device. Cropping is slicing; normalization comes last, right before the network.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.limits import FILTERS, MAX_SIDE, RESIZE_MODES, check_type

MAX_PIXEL = 1e6  # far above any mean or standard deviation of pixels in 0..1


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Crop and normalisation, recorded in every artefact.

    Attributes:
        size: Both sides of a resized image are at least this many pixels.
        mode: Resize mode of the shards.
        filter: Resampling filter of the shards.
        crop: Side of the square that the network sees.
        mean, std: Per channel (R, G, B), for pixels scaled to 0..1.

    Raises:
        TypeError, ValueError: A value has another type, or is out of range.
    """

    size: int
    mode: str
    filter: str
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name, kind in (("size", int), ("mode", str), ("filter", str), ("crop", int)):
            check_type(name, getattr(self, name), kind)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) and abs(value) < MAX_PIXEL for value in values):
                raise ValueError(f"{name} is {values}, it must be three finite numbers")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std is {self.std}, it must be three numbers above 0")
        if self.size > MAX_SIDE:
            raise ValueError(f"size is {self.size}, it must be at most {MAX_SIDE} pixels")
        if self.mode not in RESIZE_MODES or self.filter not in FILTERS:
            raise ValueError(f"mode {self.mode!r} or filter {self.filter!r} does not exist")
        if not 0 < self.crop <= self.size:
            raise ValueError(f"a crop of {self.crop} pixels does not fit in images of {self.size}")


def center_crop(images: Iterable[Tensor], crop: int) -> Tensor:
    """The central crop x crop pixels of each image, uint8 (height, width, 3); an odd margin is smaller at the top and left.

    Returns:
        uint8 (images, crop, crop, 3).
    """
    corners = ((image, (image.shape[0] - crop) // 2, (image.shape[1] - crop) // 2) for image in images)
    return torch.stack([image[top : top + crop, left : left + crop] for image, top, left in corners])


def mirror(images: Tensor, mirrored: Tensor) -> Tensor:
    """Flip images, uint8 (images, height, width, 3), horizontally where ``mirrored``, bool (images,) on the same device, is true.

    Meant to run on the device: decoding threads would spend a fifth of their time on it.
    """
    return torch.where(mirrored[:, None, None, None], images.flip(2), images)


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """float32 (3,) each, so that pixel * scale + shift = (pixel / 255 - mean) / std."""
    deviation = torch.tensor(std)
    return 1.0 / (255.0 * deviation), -torch.tensor(mean) / deviation


def normalize(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """uint8 (images, height, width, 3) -> float32 (images, 3, height, width), channels last in memory.

    Args:
        scale, shift: From :func:`scale_and_shift`, on the images' device. Creating them for every batch would synchronize a GPU.
    """
    return torch.addcmul(shift, images.float(), scale).permute(0, 3, 1, 2)
