"""Classification networks by name, without their classifiers: torchvision's, and timm's as ``timm:NAME`` where timm is installed.

Everything that differs between the two libraries is here; what comes out is a module from normalised pixels to pooled features. A
network is built empty and takes its weights strictly: a key too many or too few is an error that lists it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.torchvision_loading import torchvision_models

TIMM = "timm:"
HEAD_NAMES = ("fc", "classifier", "heads", "head")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SHOWN_KEYS = 8


class PooledHead(nn.Module):
    """Stands in for a network's classifier: what would have been classified, averaged over space if it still has space."""

    def forward(self, features: Tensor) -> Tensor:
        # features: (images, dim) or (images, dim, height, width)
        return features.mean(dim=(2, 3)) if features.dim() == 4 else features


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """What weights want: the side of their square input in pixels, and mean and deviation per channel for pixels in 0..1."""

    name: str
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def timm_library() -> ModuleType:
    """``timm``, imported after torchvision, which it needs.

    Raises:
        ImportError: The extra is not installed.
    """
    torchvision_models()
    import timm

    return timm


def backbone_names(pattern: str = "") -> list[str]:
    """Names of the networks that hold ``pattern``: torchvision's, or timm's where the pattern begins with ``timm:``.

    Raises:
        ImportError: timm is asked for and not installed.
    """
    if pattern.startswith(TIMM):
        return [TIMM + name for name in timm_library().list_models() if pattern.removeprefix(TIMM) in name]
    models = torchvision_models()
    return [name for name in models.list_models(module=models) if not name.startswith("quantized_") and pattern in name]


def weights_names(backbone: str) -> list[str]:
    """Names of a network's published weights, the default first: the tutorial's IMAGENET1K_V1 where torchvision has several.

    timm's weights may be part of the name (``timm:resnet50.a1_in1k``); then there are no others.

    Raises:
        KeyError: There is no such network, or not with these weights.
        ImportError: timm is asked for and not installed.
    """
    if not backbone.startswith(TIMM):
        if backbone not in backbone_names():
            raise KeyError(backbone)
        return [member.name for member in torchvision_models().get_model_weights(backbone)]
    timm = timm_library()
    name, _, tag = backbone.removeprefix(TIMM).partition(".")
    if not timm.is_model(name):
        raise KeyError(backbone)
    tags = [cfg.tag for cfg in timm.models.get_arch_pretrained_cfgs(name).values() if cfg.has_weights]
    if tag and tag not in tags:
        raise KeyError(backbone)
    default = timm.models.get_pretrained_cfg(name).tag
    return [tag] if tag else sorted(tags, key=lambda other: other != default)


def _timm_cfg(backbone: str, weights: str) -> Any:
    name, _, tag = backbone.removeprefix(TIMM).partition(".")
    return timm_library().models.get_pretrained_cfg(".".join(filter(None, (name, tag or weights))))


def published_weights(backbone: str, name: str) -> WeightsInfo:
    """Crop, mean and deviation of published weights, as they say themselves."""
    if backbone.startswith(TIMM):
        cfg = _timm_cfg(backbone, name)
        return WeightsInfo(name=name, crop=int(cfg.input_size[-1]), mean=tuple(cfg.mean), std=tuple(cfg.std))
    transforms = torchvision_models().get_model_weights(backbone)[name].transforms()
    return WeightsInfo(name=name, crop=int(transforms.crop_size[0]), mean=tuple(transforms.mean), std=tuple(transforms.std))


def info_of_file(backbone: str, file_name: str) -> WeightsInfo:
    """What the weights in a file want: those of the published file of this name, or else of the network's first published weights."""
    names = weights_names(backbone)
    if not backbone.startswith(TIMM):
        members = {PurePath(urlsplit(member.url).path).name: member.name for member in torchvision_models().get_model_weights(backbone)}
        names.insert(0, members.get(file_name, names[0]))
    return published_weights(backbone, names[0]) if names else random_info(256)


def random_info(size: int) -> WeightsInfo:
    """What random weights want: 7/8 of the shards' size (224 of 256), ImageNet's usual mean and deviation."""
    return WeightsInfo(name="random", crop=size * 7 // 8, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def download_state(backbone: str, name: str) -> dict[str, Tensor]:
    """Published weights by the library's own download: torchvision's are checked against the hash in their file name.

    Raises:
        OSError: No network (urllib's URLError is one), or no space.
        RuntimeError: The download does not have its hash, or timm's hub client gave up.
    """
    if not backbone.startswith(TIMM):
        state: dict[str, Tensor] = torchvision_models().get_model_weights(backbone)[name].get_state_dict(progress=False, check_hash=True)
        return state
    arch = backbone.removeprefix(TIMM).partition(".")[0]
    try:
        return dict(timm_library().create_model(f"{arch}.{name}", pretrained=True, num_classes=0).state_dict())
    except Exception as error:  # the hub's client has exceptions of its own for every kind of absence
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def random_state(backbone: str, *, seed: int, crop: int = 224) -> dict[str, Tensor]:
    """Freshly initialised weights; the same seed gives the same tensors and leaves torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(_classifier(backbone, crop).state_dict())


def _classifier(backbone: str, crop: int) -> nn.Module:
    """The network as its library builds it; timm's comes without its classifier already."""
    if backbone.startswith(TIMM):
        name = backbone.removeprefix(TIMM)
        # Transformers are built for one size of image; convolutional networks refuse to be told one.
        options: dict[str, Any] = {"img_size": crop} if timm_library().models.get_pretrained_cfg(name).fixed_input_size else {}
        timm_network: nn.Module = timm_library().create_model(name, num_classes=0, **options)
        return timm_network
    if backbone not in backbone_names():
        raise KeyError(backbone)
    options = {"weights": None}
    if backbone in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True, "transform_input": False}  # normalisation is ours
    elif backbone.startswith("vit_"):
        options |= {"image_size": crop}
    network: nn.Module = torchvision_models().get_model(backbone, **options)
    return network


def _headless(backbone: str, network: nn.Module) -> nn.Module:
    if backbone.startswith(TIMM):
        return network
    head = next(name for name in HEAD_NAMES if hasattr(network, name))
    setattr(network, head, PooledHead())
    if isinstance(getattr(network, "avgpool", None), nn.AdaptiveAvgPool2d):
        network.avgpool = nn.AdaptiveAvgPool2d(1)  # VGG and AlexNet pool to 7x7 and 6x6
    return network


def build_network(backbone: str, state: Mapping[str, Tensor], *, crop: int) -> nn.Module:
    """Build a network for square images of ``crop`` pixels, load ``state`` strictly, and take the classifier off.

    The classifier's own tensors, and the auxiliary heads of the Inception family, may be there or be missing.

    Returns:
        A module from float (images, 3, crop, crop) to (images, dim), channels last in memory.

    Raises:
        KeyError: There is no such network.
        ValueError: ``state`` does not fit; lists missing and unexpected keys, and other shapes.
        AssertionError, RuntimeError: The network cannot be built for this crop.
    """
    network = _headless(backbone, _classifier(backbone, crop))
    wanted = network.state_dict()
    given = {key: value for key, value in _upgraded(state).items() if key in wanted or not _of_a_head(backbone, key)}
    # Counters of batches, which nothing here reads; weights from before torch 0.4.1 have none.
    given |= {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked") and key not in given}
    _check_fit(wanted, given)
    # Some networks read their version from the state's metadata, which only torch's own files carry.
    complete = OrderedDict(given)
    complete._metadata = getattr(state, "_metadata", None) or wanted._metadata  # type: ignore[attr-defined]
    network.load_state_dict(complete)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _of_a_head(backbone: str, key: str) -> bool:
    heads: Sequence[str] = HEAD_NAMES
    if backbone.startswith(TIMM):
        names = timm_library().models.get_pretrained_cfg(backbone.removeprefix(TIMM)).classifier or ()
        heads = (names,) if isinstance(names, str) else tuple(names)
    return key.lower().startswith("aux") or any(key.startswith(f"{head}.") for head in heads)


def _check_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    shapes = [f"{k} ({tuple(given[k].shape)}, not {tuple(v.shape)})" for k, v in wanted.items() if k in given and given[k].shape != v.shape]
    sides = {
        "missing keys": [key for key in wanted if key not in given],
        "unexpected keys": [key for key in given if key not in wanted],
        "other shapes": shapes,
    }
    problems = [
        f"{name}: {', '.join(keys[:SHOWN_KEYS])}" + (f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else "")
        for name, keys in sides.items()
        if keys
    ]
    if problems:
        raise ValueError("; ".join(problems))


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


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of the tensors, by sorted name: the same for .pth and .safetensors."""
    total = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        total.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def weights_digest(backbone: str, state: Mapping[str, Tensor]) -> str:
    """What identifies weights, in whatever file they came: :func:`state_digest`, for timm without the classifier, which it drops itself."""
    if backbone.startswith(TIMM):
        state = {key: value for key, value in state.items() if not _of_a_head(backbone, key)}
    return state_digest(state)


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
    crop = 224
    if backbone.startswith(TIMM):
        crop = int(_timm_cfg(backbone, "").input_size[-1])
    try:
        with torch.device("meta"):
            network = _headless(backbone, _classifier(backbone, crop))
    except (NotImplementedError, RuntimeError):  # "no data": RegNet, among others, reckons its widths with tensors
        with _WithoutData():
            network = _headless(backbone, _classifier(backbone, crop))
    with torch.device("meta"), torch.no_grad():
        dim = network.to("meta").eval()(torch.zeros(1, 3, crop, crop)).shape[1]
    return int(dim), sum(parameter.numel() for parameter in network.parameters())
