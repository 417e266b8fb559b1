"""The frozen backbone (image -> pooled features) and the trainable projection (features -> the decoder's embedding space).

"Frozen" holds by construction: :class:`FrozenBackbone` ignores ``train()``, so that its BatchNorm statistics never change, and its forward
pass records no gradients.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional

from model.backbone_sources import WeightsInfo
from model.networks import build_network
from model.preprocessing import Preprocessing, normalize, scale_and_shift


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
        """Compute mean and axes from a sample, float32 (images, dim)."""
        self.mean.copy_(features.mean(dim=0))
        deviation = features.std(dim=0, correction=0)
        # A unit that is constant over the sample must not dominate where it is not.
        deviation = deviation.clamp_min(max(0.01 * float(deviation.mean()), 1e-6))
        standard = ((features - self.mean) / deviation).double()
        values, axes = torch.linalg.eigh(standard.T @ standard / len(standard))
        self.matrix.copy_((axes * (values.clamp_min(0) + 0.01).rsqrt()).float() / deviation[:, None])

    def forward(self, features: Tensor) -> Tensor:
        """float32 (images, dim) -> float32 (images, dim)."""
        return (features - self.mean) @ self.matrix


class FrozenBackbone(nn.Module):
    """A classification network without its classifier, always in eval mode.

    Args:
        network: Normalised pixels -> pooled features, as :func:`model.networks.build_network` makes it.
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
        """Pooled features of cropped images.

        Args:
            images: uint8 (images, crop, crop, 3) on the network's device.

        Returns:
            float32 (images, dim).
        """
        pixels = normalize(images, self.scale, self.shift)
        features: Tensor = self.network(pixels).float()
        return features if self.whitening is None else self.whitening(features)


def build_backbone(backbone: str, state: Mapping[str, Tensor], preprocessing: Preprocessing) -> FrozenBackbone:
    """Build a network with its weights and freeze it.

    Args:
        backbone, state: As for :func:`model.networks.build_network`; ``state`` may also be from :func:`backbone_state`.

    Raises:
        KeyError, ValueError, AssertionError, RuntimeError: As :func:`model.networks.build_network`.
    """
    whitening = {key.removeprefix("whitening."): value for key, value in state.items() if key.startswith("whitening.")}
    if whitening:
        state = {key: value for key, value in state.items() if not key.startswith("whitening.")}
    frozen = FrozenBackbone(build_network(backbone, state, crop=preprocessing.crop), preprocessing)
    if whitening:
        frozen.whitening = Whitening(len(whitening["mean"])).requires_grad_(False)
        frozen.whitening.load_state_dict(whitening)
    return frozen


def backbone_state(backbone: FrozenBackbone, *, whitening: bool = True) -> dict[str, Tensor]:
    """The network's tensors for :func:`build_backbone`: without the removed classifier, and with the whitening unless it is excluded."""
    state = backbone.network.state_dict()
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
    sample = torch.cat([backbone(batch) for batch in batches])
    backbone.whitening = Whitening(sample.shape[1]).requires_grad_(False)
    backbone.whitening.calibrate(sample)


class BiasCorrectedBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d over the batches of all processes, with running averages that are unbiased from the first step.

    An exponential average with momentum 0.01 stays near its initial value for hundreds of steps. Dividing it by 1 - (1 - m)^t, as Adam
    does (Kingma and Ba, 2015, section 3), equals averaging with the factor m / (1 - (1 - m)^t) at step t.

    In distributed training, mean and variance are those of the images of all processes: count, sum and squares are summed over the
    processes in float64 by a differentiable operation. torch's SyncBatchNorm works on GPUs only.
    """

    # A copy of num_batches_tracked: reading it from a GPU at every step would synchronize.
    _batches: int | None = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._batches = None

    def forward(self, features: Tensor, seen: Tensor | None = None) -> Tensor:
        """Normalize ``features``, (images, dim).

        Args:
            seen: (images, dim): in training, the running averages are computed from these; by default from ``features``.
        """
        if not self.training:
            return super().forward(features)
        assert self.num_batches_tracked is not None and self.momentum is not None
        if self._batches is None:
            self._batches = int(self.num_batches_tracked)
        self._batches += 1
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        factor = momentum / (1.0 - (1.0 - momentum) ** self._batches)
        shared = distributed.is_available() and distributed.is_initialized()
        normalized = self._over_all_processes if shared else self._over_this_process
        if seen is None:
            return normalized(features, factor)
        with torch.no_grad():
            normalized(seen, factor)
        return normalized(features, 0.0)

    def _over_this_process(self, features: Tensor, factor: float) -> Tensor:
        return functional.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training=True, momentum=factor, eps=self.eps
        )

    def _over_all_processes(self, features: Tensor, factor: float) -> Tensor:
        wide = features.double()
        count = wide.new_full((1,), len(wide))
        # (1 + 2 dim,): the number of images, and per feature their sum and the sum of their squares
        sums: Tensor = all_reduce(torch.cat([count, wide.sum(dim=0), wide.square().sum(dim=0)]))  # type: ignore[no-untyped-call]
        images = sums[0].detach()
        mean, square = (sums[1:] / images).chunk(2)
        variance = (square - mean.square()).clamp_min(0)
        assert self.running_mean is not None and self.running_var is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            # Running variances are unbiased, as torch's are: divided by images - 1.
            self.running_var.lerp_((variance * images / (images - 1)).to(self.running_var.dtype), factor)
        normalized = ((wide - mean) * (variance + self.eps).rsqrt()).to(features.dtype)
        return normalized * self.weight + self.bias


class Projection(nn.Module):
    """Linear + BatchNorm1d from pooled features to the decoder's embedding space, as in the tutorial (momentum 0.01).

    It stays in float32 under autocast: it is small, and bfloat16 is too coarse for BatchNorm's sums.

    Args:
        dropout: Probability with which a pooled feature is dropped in training. For the linear layer this is a ridge penalty (Wager et al.,
            2013, "Dropout training as adaptive regularization"), which prevents overfitting on few images. BatchNorm's running averages are
            computed without dropout: dropped features vary more than the features that evaluation sees (Li et al., 2019, "Understanding the
            disharmony between dropout and batch normalization by variance shift").
    """

    def __init__(self, feature_dim: int, embedding_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(feature_dim, embedding_dim)
        self.norm = BiasCorrectedBatchNorm1d(embedding_dim, momentum=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Float (images, feature_dim) -> float32 (images, embedding_dim); in training mode at least two images, summed over all processes."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            complete = None
            if self.training and self.dropout.p:
                with torch.no_grad():
                    complete = self.linear(features)
            projected: Tensor = self.norm(self.linear(self.dropout(features)), complete)
        return projected


def feature_dim(backbone: FrozenBackbone) -> int:
    """The number of features per image, found by running the network once."""
    crop = backbone.preprocessing.crop
    device = next(backbone.parameters()).device
    return int(backbone(torch.zeros(1, crop, crop, 3, dtype=torch.uint8, device=device)).shape[1])


def with_crop(info: WeightsInfo, *, size: int, mode: str, filter: str) -> Preprocessing:
    """The preprocessing for weights, on shards whose images have this size.

    Raises:
        ValueError: The images are smaller than the crop.
    """
    return Preprocessing(size=size, mode=mode, filter=filter, crop=info.crop, mean=info.mean, std=info.std)
