"""The frozen backbone: image -> features, one pooled vector or one for each position of a grid.

"Frozen" holds by construction: :class:`FrozenBackbone` ignores ``train()``, so that its BatchNorm statistics never change, and its forward
pass records no gradients.
"""

from collections.abc import Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from model.backbone_sources import WeightsInfo
from model.feature_layout import POOLED
from model.networks import GridNetwork, build_network
from model.preprocessing import Preprocessing, normalize, scale_and_shift

# Of the positions of grids, this many rows calibrate the whitening of a random network, which takes their covariance.
MAX_CALIBRATION_ROWS = 20_000
MEAN_TOLERANCE = 1e-4


class Whitening(nn.Module):
    """Pooled features -> uncorrelated features of about unit variance, by the principal axes of a sample.

    The features of random networks are almost copies of one another: a few directions hold almost all variance, and gradient descent
    hardly reaches the others. With the covariance C of the sample's standardized features, the features are multiplied by (C + 0.01)^(-1/2).
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Compute mean and axes from a sample, float32 (rows, dim)."""
        self.mean.copy_(features.mean(dim=0))
        deviation = features.std(dim=0, correction=0)
        # A unit that is constant over the sample must not dominate where it is not.
        deviation = deviation.clamp_min(max(0.01 * float(deviation.mean()), 1e-6))
        standard = ((features - self.mean) / deviation).double()
        values, axes = torch.linalg.eigh(standard.T @ standard / len(standard))
        self.matrix.copy_((axes * (values.clamp_min(0) + 0.01).rsqrt()).float() / deviation[:, None])

    def forward(self, features: Tensor) -> Tensor:
        """float32 (..., dim) -> float32 (..., dim)."""
        return (features - self.mean) @ self.matrix


class FrozenBackbone(nn.Module):
    """A classification network without its classifier, always in eval mode.

    Args:
        network: Normalised pixels -> features, as :func:`model.networks.build_network` makes it.
        preprocessing: The preprocessing that the weights were trained with.
    """

    whitening: Whitening | None
    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        for name, value in zip(("scale", "shift"), scale_and_shift(preprocessing.mean, preprocessing.std), strict=True):
            self.register_buffer(name, value, persistent=False)
        self.network = network.requires_grad_(False)
        self.preprocessing = preprocessing
        self.whitening = None
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode; ``mode`` is ignored."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features of cropped images.

        Args:
            images: uint8 (images, crop, crop, 3) on the network's device.

        Returns:
            float32 (images, positions, dim).
        """
        pixels = normalize(images, self.scale, self.shift)
        features: Tensor = self.network(pixels).float()
        if features.dim() == 2:
            features = features.unsqueeze(1)
        return features if self.whitening is None else self.whitening(features)


def build_backbone(backbone: str, state: Mapping[str, Tensor], preprocessing: Preprocessing, layout: str = POOLED) -> FrozenBackbone:
    """Build a network with its weights and freeze it.

    Args:
        layout: As in :mod:`model.feature_layout`.
        backbone, state: As for :func:`model.networks.build_network`; ``state`` may also be from :func:`backbone_state`.

    Raises:
        KeyError, ValueError, AssertionError, RuntimeError: As :func:`model.networks.build_network`.
    """
    whitening = {key.removeprefix("whitening."): value for key, value in state.items() if key.startswith("whitening.")}
    if whitening:
        state = {key: value for key, value in state.items() if not key.startswith("whitening.")}
    frozen = FrozenBackbone(build_network(backbone, state, crop=preprocessing.crop, layout=layout), preprocessing)
    if whitening:
        frozen.whitening = Whitening(len(whitening["mean"])).requires_grad_(False)
        frozen.whitening.load_state_dict(whitening)
    return frozen


def backbone_state(backbone: FrozenBackbone, *, whitening: bool = True) -> dict[str, Tensor]:
    """The network's tensors for :func:`build_backbone`: without the removed classifier, and with the whitening unless it is excluded."""
    network = backbone.network
    # A grid's network has the same weights under the same names
    state = (network.network if isinstance(network, GridNetwork) else network).state_dict()
    if backbone.whitening is not None and whitening:
        state |= {f"whitening.{key}": value for key, value in backbone.whitening.state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


@torch.no_grad()
def calibrate(backbone: FrozenBackbone, batches: Iterable[Tensor]) -> None:
    """Set a random network's BatchNorm statistics and whitening from real images.

    Without the statistics, deep random networks overflow. In training mode each layer normalizes by its own batch, so that one
    pass sets all layers; the statistics are plain means over the batches. A second pass computes the axes of :class:`Whitening`.

    Args:
        batches: uint8 (images, crop, crop, 3), at least one.
    """
    batches = list(batches)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train(True)
    for batch in batches if norms else ():
        backbone(batch)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    backbone.train(False)
    sample = torch.cat([backbone(batch).flatten(0, 1) for batch in batches])
    sample = sample[:: max(1, len(sample) // MAX_CALIBRATION_ROWS)]
    backbone.whitening = Whitening(sample.shape[1]).requires_grad_(False)
    backbone.whitening.calibrate(sample)


def feature_shape(backbone: FrozenBackbone) -> tuple[int, int]:
    """(positions, dim) of an image's features, found by running the network once."""
    crop = backbone.preprocessing.crop
    device = next(backbone.parameters()).device
    _, positions, dim = backbone(torch.zeros(1, crop, crop, 3, dtype=torch.uint8, device=device)).shape
    return int(positions), int(dim)


def mean_is_pooled(backbone: FrozenBackbone) -> bool:
    """Whether the mean over the positions equals the network's pooled features, measured on two images of noise.

    It does not where a network adds something after averaging, such as another layer, or takes a class token instead. ``grid:N`` averages
    overlapping parts of the grid where N does not divide its side.
    """
    network = backbone.network
    if not isinstance(network, GridNetwork):
        return True
    crop, device = backbone.preprocessing.crop, next(backbone.parameters()).device
    noise = torch.randint(0, 256, (2, crop, crop, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        pixels = normalize(noise, backbone.scale, backbone.shift)
        pooled, mean = network.network(pixels).float(), network(pixels).float().mean(dim=1)
    return pooled.shape == mean.shape and float((pooled - mean).norm()) <= MEAN_TOLERANCE * float(pooled.norm())


def with_crop(info: WeightsInfo, *, size: int, mode: str, filter: str) -> Preprocessing:
    """The preprocessing for weights, on shards whose images have this size.

    Raises:
        ValueError: The images are smaller than the crop.
    """
    return Preprocessing(size=size, mode=mode, filter=filter, crop=info.crop, mean=info.mean, std=info.std)
