"""The trainable projection: image features -> the decoder's embedding space."""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional


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
    """Linear + BatchNorm1d from image features to the decoder's embedding space, as in the tutorial (momentum 0.01), for each position.

    It stays in float32 under autocast: it is small, and bfloat16 is too coarse for BatchNorm's sums.

    Args:
        dropout: Probability with which a feature is dropped in training. For the linear layer this is a ridge penalty (Wager et al.,
            2013, "Dropout training as adaptive regularization"), which prevents overfitting on few images. BatchNorm's running averages are
            computed without dropout: dropped features vary more than the features that evaluation sees (Li et al., 2019, "Understanding the
            disharmony between dropout and batch normalization by variance shift").
    """

    def __init__(self, feature_dim: int, embedding_dim: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(feature_dim, embedding_dim)
        self.norm = BiasCorrectedBatchNorm1d(embedding_dim, momentum=0.01)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project every position. In training mode there have to be at least two, summed over all processes.

        Args:
            features: float (images, positions, feature_dim).
            mask: bool (images, positions): which positions are real; padding is not counted by BatchNorm. None: all of them.

        Returns:
            float32 (images, positions, embedding_dim), with zeros for padding.
        """
        if mask is None:
            return self._projected(features.flatten(0, 1)).view(*features.shape[:2], self.linear.out_features)
        projected = self._projected(features[mask])
        return projected.new_zeros((*mask.shape, projected.shape[1])).index_put(mask.nonzero(as_tuple=True), projected)

    def _projected(self, features: Tensor) -> Tensor:
        """Float (rows, feature_dim) -> float32 (rows, embedding_dim)."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            complete = None
            if self.training and self.dropout.p:
                with torch.no_grad():
                    complete = self.linear(features)
            projected: Tensor = self.norm(self.linear(self.dropout(features)), complete)
        return projected
