"""The frozen backbone (photograph -> pooled features) and the trainable projection (features -> the LSTM's first input).

"Frozen" is kept by construction: :class:`FrozenBackbone` ignores ``train()``, whoever calls it, so that no BatchNorm statistic
ever moves, and its forward pass records no gradients.
"""

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from model.preprocessing import Preprocessing, normalize
from model.torchvision_loading import torchvision_models

HEAD_NAMES = ("fc", "classifier", "heads", "head")
RANDOM_MEAN = (0.485, 0.456, 0.406)
RANDOM_STD = (0.229, 0.224, 0.225)


class _PooledHead(nn.Module):
    """Stands in for a network's classifier: what would have been classified, averaged over space if it still has space."""

    def forward(self, features: Tensor) -> Tensor:
        # features: (images, dim) or (images, dim, height, width)
        return features.mean(dim=(2, 3)) if features.dim() == 4 else features


class Whitening(nn.Module):
    """Pooled features -> uncorrelated ones of about unit variance, by the principal axes of a sample.

    Random networks' features are nearly copies of one another: a few directions hold almost all variance, and gradient descent
    hardly sees the others. The sample's covariance C of standardised features is inverted as (C + 0.01)^(-1/2).
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("matrix", torch.eye(dim))

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Take mean and axes from a sample, float32 (images, dim)."""
        self.mean.copy_(features.mean(dim=0))
        deviation = features.std(dim=0, correction=0)
        # A unit that was silent for the whole sample must not shout when it speaks at last.
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
        network: As torchvision builds it; its head is replaced here.
        preprocessing: What the weights were trained with.
    """

    whitening: Whitening | None

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        head = next((name for name in HEAD_NAMES if hasattr(network, name)), None)
        if head is None:
            raise ValueError(f"{type(network).__name__} has no classifier under any of the names {', '.join(HEAD_NAMES)}")
        setattr(network, head, _PooledHead())
        if isinstance(getattr(network, "avgpool", None), nn.AdaptiveAvgPool2d):
            network.avgpool = nn.AdaptiveAvgPool2d(1)  # VGG and AlexNet pool to 7x7 and 6x6
        self.network = network.requires_grad_(False)
        self.preprocessing = preprocessing
        self.whitening = None
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever ``mode`` says."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Pooled features of cropped photographs.

        Args:
            images: uint8 (images, crop, crop, 3) on the network's device.

        Returns:
            float32 (images, dim).
        """
        pixels = normalize(images, self.preprocessing.mean, self.preprocessing.std)
        features: Tensor = self.network(pixels).float()
        return features if self.whitening is None else self.whitening(features)


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """Where weights come from, and what they want."""

    name: str
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def backbone_names() -> list[str]:
    """Names of torchvision's classification networks that this module can freeze."""
    models = torchvision_models()
    return [name for name in models.list_models(module=models) if not name.startswith("quantized_")]


def weights_names(backbone: str) -> list[str]:
    """Names of a network's published weights, the tutorial's (IMAGENET1K_V1) first where there are several.

    Raises:
        KeyError: torchvision has no such network.
    """
    if backbone not in backbone_names():
        raise KeyError(backbone)
    return [member.name for member in torchvision_models().get_model_weights(backbone)]


def published_weights(backbone: str, name: str) -> WeightsInfo:
    """Crop, mean and deviation of published weights, as their own transforms say."""
    transforms = torchvision_models().get_model_weights(backbone)[name].transforms()
    return WeightsInfo(name=name, crop=int(transforms.crop_size[0]), mean=tuple(transforms.mean), std=tuple(transforms.std))


def download_state(backbone: str, name: str) -> dict[str, Tensor]:
    """Published weights by torchvision's own download, checked against the hash in their file name.

    Raises:
        OSError: No network (urllib's URLError is one), or no space.
        RuntimeError: The download does not have its hash.
    """
    member = torchvision_models().get_model_weights(backbone)[name]
    state: dict[str, Tensor] = member.get_state_dict(progress=False, check_hash=True)
    return state


def random_state(backbone: str, *, seed: int) -> dict[str, Tensor]:
    """Freshly initialised weights; the same seed gives the same tensors and leaves torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(_empty_network(backbone).state_dict())


def build_backbone(backbone: str, state: Mapping[str, Tensor], preprocessing: Preprocessing) -> FrozenBackbone:
    """Build the network, load ``state`` strictly (but for the auxiliary heads of the Inception family), and freeze it.

    Raises:
        KeyError: torchvision has no such network.
        RuntimeError: ``state`` does not fit; lists the keys.
    """
    network = _empty_network(backbone)
    wanted = set(network.state_dict())
    _load(network, {key: value for key, value in _upgraded(state).items() if key in wanted or not key.lower().startswith("aux")}, state)
    return FrozenBackbone(network.to(memory_format=torch.channels_last), preprocessing)  # type: ignore[call-overload]


def _load(network: nn.Module, state: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> None:
    """Load strictly. Some networks read their version from the state's metadata, which only torch's own files carry."""
    complete = OrderedDict(state)
    metadata = getattr(original, "_metadata", None) or network.state_dict()._metadata  # type: ignore[attr-defined]
    complete._metadata = metadata  # type: ignore[attr-defined]
    network.load_state_dict(complete)


def _upgraded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DenseNet's published files still use the names of torch 0.3 ("norm.1.weight"); torchvision's own loader renames them."""
    parts = ("norm", "relu", "conv")
    renamed = {}
    for key, value in state.items():
        name = key
        if "denselayer" in key:
            for part in parts:
                for digit in ("1", "2"):
                    name = name.replace(f".{part}.{digit}.", f".{part}{digit}.")
        renamed[name] = value
    return renamed


def _empty_network(backbone: str) -> nn.Module:
    if backbone not in backbone_names():
        raise KeyError(backbone)
    options: dict[str, Any] = {"weights": None}
    if backbone in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True, "transform_input": False}  # normalisation is ours
    network: nn.Module = torchvision_models().get_model(backbone, **options)
    return network


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of the tensors, by sorted name: the same for .pth and .safetensors."""
    total = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        total.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def backbone_state(backbone: FrozenBackbone) -> dict[str, Tensor]:
    """The network's tensors, as :func:`build_backbone` takes them back (without the head, which is gone)."""
    state = backbone.network.state_dict()
    if backbone.whitening is not None:
        state |= {f"whitening.{key}": value for key, value in backbone.whitening.state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def build_headless(backbone: str, state: Mapping[str, Tensor], preprocessing: Preprocessing) -> FrozenBackbone:
    """Like :func:`build_backbone`, for a state from :func:`backbone_state`: the head's tensors may be missing, no others."""
    frozen = FrozenBackbone(_empty_network(backbone).to(memory_format=torch.channels_last), preprocessing)  # type: ignore[call-overload]
    whitening = {key.removeprefix("whitening."): value for key, value in state.items() if key.startswith("whitening.")}
    _load(frozen.network, {key: value for key, value in state.items() if not key.startswith("whitening.")}, state)
    if whitening:
        frozen.whitening = Whitening(len(whitening["mean"])).requires_grad_(False)
        frozen.whitening.load_state_dict(whitening)
    return frozen


@torch.no_grad()
def calibrate(backbone: FrozenBackbone, batches: Iterable[Tensor]) -> None:
    """Give random weights the BatchNorm statistics of real photographs, and whitened features.

    Without the statistics deep random networks overflow. In training mode each layer normalises by its own batch, so that one
    pass sets all layers; the statistics are plain means over the batches. A second pass finds the axes of :class:`Whitening`.

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
    for batch in batches:
        backbone(batch)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    backbone.train(False)
    sample = torch.cat([backbone(batch) for batch in batches])
    backbone.whitening = Whitening(sample.shape[1]).requires_grad_(False)
    backbone.whitening.calibrate(sample)


class BiasCorrectedBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d whose running averages are unbiased from the first step.

    An exponential average with momentum 0.01 stays near its start for hundreds of steps. Dividing by 1 - (1 - m)^t, as Adam
    does (Kingma and Ba, 2015, section 3), is the same as averaging with the factor m / (1 - (1 - m)^t) at step t.
    """

    def forward(self, features: Tensor) -> Tensor:
        # features: (images, dim)
        if not self.training:
            return super().forward(features)
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        factor = momentum / (1.0 - (1.0 - momentum) ** int(self.num_batches_tracked))
        return functional.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training=True, momentum=factor, eps=self.eps
        )


class Projection(nn.Module):
    """Linear + BatchNorm1d from pooled features to the decoder's embedding space, as in the tutorial (momentum 0.01)."""

    def __init__(self, feature_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_dim, embedding_dim)
        self.norm = BiasCorrectedBatchNorm1d(embedding_dim, momentum=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """float32 (images, feature_dim) -> float32 (images, embedding_dim); at least two images in training mode."""
        projected: Tensor = self.norm(self.linear(features))
        return projected


def feature_dim(backbone: FrozenBackbone) -> int:
    """How many features the network gives, found by asking it."""
    crop = backbone.preprocessing.crop
    device = next(backbone.parameters()).device
    return int(backbone(torch.zeros(1, crop, crop, 3, dtype=torch.uint8, device=device)).shape[1])


class _WithoutData(TorchFunctionMode):
    """Makes parameters and buffers without memory, and computes everything else: some networks ask for numbers while they are built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def describe(backbone: str) -> tuple[int, int]:
    """Features per image and number of frozen parameters of a network, found by building it without memory for its weights.

    >>> describe("resnet18")
    (512, 11176512)
    """
    preprocessing = Preprocessing(size=224, mode="squash", filter="lanczos", crop=224, mean=RANDOM_MEAN, std=RANDOM_STD)
    try:
        with torch.device("meta"):
            frozen = FrozenBackbone(_empty_network(backbone), preprocessing)
    except NotImplementedError:  # "no data": RegNet reckons its widths with tensors
        with _WithoutData():
            frozen = FrozenBackbone(_empty_network(backbone), preprocessing)
    with torch.device("meta"):
        return feature_dim(frozen), sum(parameter.numel() for parameter in frozen.parameters())


def with_crop(info: WeightsInfo, *, size: int, mode: str, filter: str) -> Preprocessing:
    """The preprocessing of weights on shards of a size.

    Raises:
        ValueError: The shards are smaller than the crop.
    """
    content = dataclasses.asdict(info)
    del content["name"]
    return Preprocessing(size=size, mode=mode, filter=filter, **content)


def random_info(size: int) -> WeightsInfo:
    """What random weights want: 7/8 of the shards' size (224 of 256), ImageNet's usual mean and deviation."""
    return WeightsInfo(name="random", crop=size * 7 // 8, mean=RANDOM_MEAN, std=RANDOM_STD)
