"""Classification networks by name, without their classifiers, and their weights.

The networks' sources are in :mod:`model.backbone_sources`. A network becomes a module from normalized pixels to pooled features. Weights
are loaded strictly: missing and unexpected keys are an error that lists them.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from model.backbone_sources import BACKBONE_SOURCES, BackboneSource, WeightsInfo, source_of
from model.feature_layout import POOLED

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SHOWN_KEYS = 8


def backbone_names(pattern: str = "") -> list[str]:
    """Names of the networks whose name contains ``pattern``.

    A pattern that begins with a source's prefix (``timm:``) searches that source; any other pattern searches all sources without a prefix.

    Raises:
        ImportError: The source's library is not installed.
    """
    prefix = source_of(pattern).prefix
    sources = [source for source in BACKBONE_SOURCES.values() if source.prefix == prefix]
    return [name for source in sources for name in source.names() if pattern.removeprefix(prefix) in name.removeprefix(prefix)]


def weights_names(backbone: str) -> list[str]:
    """Names of a network's published weights, the default first.

    Raises:
        KeyError: There is no such network, or not with the weights in its name.
        ImportError: The source's library is not installed.
    """
    return source_of(backbone).weights_names(backbone)


def published_weights(backbone: str, name: str) -> WeightsInfo:
    """The input that published weights were trained with, as their source describes it."""
    return source_of(backbone).published_weights(backbone, name)


def info_of_file(backbone: str, file_name: str) -> WeightsInfo:
    """The input for weights in a file: that of the published weights with this file name, or else of the network's default weights."""
    names = weights_names(backbone)
    if not names:
        return random_info(256)
    return published_weights(backbone, source_of(backbone).weights_of_file(backbone, file_name) or names[0])


def random_info(size: int) -> WeightsInfo:
    """The input for random weights: 7/8 of the shards' size (224 of 256), and ImageNet's usual mean and standard deviation."""
    return WeightsInfo(name="random", crop=size * 7 // 8, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def download_state(backbone: str, name: str) -> dict[str, Tensor]:
    """Published weights, downloaded by the library itself.

    Raises:
        OSError: There is no network connection (urllib's URLError is an OSError), or no space.
        RuntimeError: The download is damaged or failed otherwise.
    """
    return source_of(backbone).download(backbone, name)


def random_state(backbone: str, *, seed: int, crop: int = 224) -> dict[str, Tensor]:
    """Freshly initialized weights. The same seed gives the same tensors; torch's global generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(source_of(backbone).build(backbone, crop).state_dict())


class GridNetwork(nn.Module):
    """A network's features before it averages them, in a grid's layout; ``network`` has all weights, and gives pooled features."""

    def __init__(self, network: nn.Module, source: BackboneSource, layout: str) -> None:
        super().__init__()
        self.network, self.head, self._source = network, source.grid_head(network, layout), source

    def forward(self, pixels: Tensor) -> Tensor:
        """Float (images, 3, crop, crop) -> float (images, positions, dim)."""
        features: Tensor = self.head(self._source.feature_map(self.network, pixels))
        return features


def build_network(backbone: str, state: Mapping[str, Tensor], *, crop: int, layout: str = POOLED) -> nn.Module:
    """Build a network for square images of ``crop`` pixels, remove its classifier, and load ``state`` strictly.

    ``state`` may include or omit the tensors of the classifier and of the Inception family's auxiliary classifiers.

    Returns:
        A module from float (images, 3, crop, crop) to (images, dim), or in a grid's layout to (images, positions, dim), channels last in memory.

    Raises:
        KeyError: There is no such network.
        ValueError: ``state`` does not fit. The message lists missing keys, unexpected keys and other shapes.
        AssertionError, RuntimeError: The network cannot be built for this crop.
    """
    source = source_of(backbone)
    network = source.without_classifier(source.build(backbone, crop))
    wanted = network.state_dict()
    heads = source.classifier_names(backbone)
    given = {key: value for key, value in source.with_current_names(state).items() if key in wanted or not _of_a_head(key, heads)}
    # BatchNorm's batch counters, which are not used here; weights from before torch 0.4.1 have none.
    given |= {key: value for key, value in wanted.items() if key.endswith("num_batches_tracked") and key not in given}
    _check_fit(wanted, given)
    # Some networks read their version from the state's metadata, which only torch's own files carry.
    complete = OrderedDict(given)
    complete._metadata = getattr(state, "_metadata", None) or wanted._metadata  # type: ignore[attr-defined]
    network.load_state_dict(complete)
    if layout != POOLED:
        network = GridNetwork(network, source, layout)
    return channels_last(network)


def channels_last(network: nn.Module) -> nn.Module:
    """The network with its images and weights of convolutions channels last in memory. Tensors of other ranks stay as they are."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


def _of_a_head(key: str, heads: Sequence[str]) -> bool:
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


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of the tensors, by sorted name: the same for .pth and .safetensors files."""
    total = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        total.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return total.hexdigest()


def weights_digest(backbone: str, state: Mapping[str, Tensor]) -> str:
    """The digest that identifies weights, whatever their file: :func:`state_digest`, without the classifier where the source drops it."""
    source = source_of(backbone)
    if not source.saves_classifier:
        heads = source.classifier_names(backbone)
        state = {key: value for key, value in state.items() if not _of_a_head(key, heads)}
    return state_digest(state)


class _WithoutData(TorchFunctionMode):
    """Creates parameters and buffers without memory, and computes everything else: some networks compute with tensors while they are built."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones):
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def describe(backbone: str) -> tuple[int, int]:
    """A network's features per image and number of frozen parameters, found by building it without memory for its weights.

    >>> describe("resnet18")
    (512, 11176512)
    """
    source = source_of(backbone)
    crop = source.default_crop(backbone)
    try:
        with torch.device("meta"):
            network = source.without_classifier(source.build(backbone, crop))
    except (NotImplementedError, RuntimeError):  # "no data": RegNet, among others, computes its widths with tensors
        with _WithoutData():
            network = source.without_classifier(source.build(backbone, crop))
    with torch.device("meta"), torch.no_grad():
        dim = network.to("meta").eval()(torch.zeros(1, 3, crop, crop)).shape[1]
    return int(dim), sum(parameter.numel() for parameter in network.parameters())
