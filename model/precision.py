"""The frozen network in lower precision: BatchNorm folded, and bfloat16 or float16 where the features agree with float32.

Rounding a network's weights shifts each layer's mean output. Shifts add up through the layers, while random errors cancel. The bias of each
layer in lower precision is therefore corrected by the difference of the two means over a sample of images (Nagel et al., "Data-free
quantization through weight equalization and bias correction", ICCV 2019, section 4.2, the empirical form). If that is not enough, the first
layers stay float32, as few as needed: an error in the first layers passes through all others.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.backbone_sources import PooledHead
from model.encoder import FrozenBackbone
from model.feature_layout import GridHead
from model.networks import channels_last

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AGREEMENT = 0.9995
# On the sample, less disagreement is accepted than AGREEMENT allows: among many other images, some will disagree more.
WANTED = 1 - 0.7 * (1 - AGREEMENT)
# If the cosine is below this even with two layers in float32, more layers will not help.
HOPELESS = 0.99
# More float32 layers than this cost more time than the other layers save.
MOST_FP32_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A network in lower precision.

    Attributes:
        backbone: The network.
        kept: Which of its first convolutions and linear layers stayed float32.
        judges: The number of images that the cosine was computed on.
        cosine: The smallest cosine similarity to float32 features, on images that the correction did not use.
    """

    backbone: FrozenBackbone
    kept: tuple[str, ...]
    judges: int
    cosine: float

    @property
    def agrees(self) -> bool:
        return self.cosine >= WANTED


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, PooledHead | GridHead) or super().is_leaf_module(m, module_qualified_name)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy whose BatchNorms are folded into the convolutions before them, where a convolution feeds nothing else.

    A network that cannot be traced is copied unchanged: it works, but is slower.
    """
    network = copy.deepcopy(network)
    try:
        graph = _Tracer().trace(network)
    except (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, NameError, AttributeError, AssertionError):
        return network  # control flow that depends on values, which tracing cannot follow
    modules = dict(network.named_modules())
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    for node in list(graph.nodes):
        if node.op != "call_module" or type(modules[str(node.target)]) is not nn.BatchNorm2d:
            continue
        before = node.args[0]
        if before.op != "call_module" or len(before.users) != 1 or calls.count(str(before.target)) != 1 or calls.count(str(node.target)) != 1:
            continue
        convolution = modules[str(before.target)]
        if type(convolution) is nn.Conv2d:
            parent, _, name = str(before.target).rpartition(".")
            setattr(modules[parent], name, fuse_conv_bn_eval(convolution, modules[str(node.target)]))
            node.replace_all_uses_with(before)
            graph.erase_node(node)
    return fx.GraphModule(network, graph)


def folded(backbone: FrozenBackbone) -> FrozenBackbone:
    """The same float32 network with its BatchNorms folded into the convolutions."""
    return _with_network(backbone, fold_batch_norms(backbone.network))


def _with_network(backbone: FrozenBackbone, network: nn.Module) -> FrozenBackbone:
    other = FrozenBackbone(channels_last(network), backbone.preprocessing)
    other.whitening = backbone.whitening
    return other


class _CompiledForOneSize(nn.Module):
    """Runs a compiled network on batches of the size that it was compiled for, and the original network on all others."""

    def __init__(self, network: nn.Module, images: int) -> None:
        super().__init__()
        self.network, self.images = network, images
        self.compiled = torch.compile(network, dynamic=False, options={"freezing": True})

    def forward(self, pixels: Tensor) -> Tensor:
        run = self.compiled if len(pixels) == self.images else self.network
        features: Tensor = run(pixels)
        return features


def compiled(backbone: FrozenBackbone, images: int) -> FrozenBackbone:
    """The same network, compiled with its weights as constants for batches of ``images``; it is compiled at its first run."""
    return _with_network(backbone, _CompiledForOneSize(backbone.network, images))


def lower(backbone: FrozenBackbone, precision: str, sample: Tensor) -> Lowered:
    """Convert a network to ``precision`` so that its features agree with float32, if possible.

    Args:
        backbone: A float32 network, folded.
        precision: ``bf16`` or ``fp16``.
        sample: uint8 (images, crop, crop, 3) on the network's device: half of the images correct the biases, the other half judge the result.

    Returns:
        The network with the fewest float32 layers that agrees, or else the one with the highest cosine.
    """
    correcting, judging = sample[0::2], sample[1::2] if len(sample) > 1 else sample
    wanted = backbone(judging)
    with _recorded_means(backbone.network) as means:
        backbone(correcting)
    order = tuple(means)
    best: Lowered | None = None
    for layers in _prefixes(len(order)):
        kept = order[:layers]
        try:
            lowered = _with_network(backbone, _cast(backbone.network, DTYPES[precision], kept))
            with _corrected(lowered.network, {name: means[name] for name in order[layers:]}):
                lowered(correcting)
            cosine = float(
                functional.cosine_similarity(wanted.flatten(1).double(), lowered(judging).flatten(1).double(), dim=1).nan_to_num(-1.0).min()
            )
        except RuntimeError:  # a layer that does not accept the dtype of the layer before it
            if best is None:
                raise
            break
        if best is None or cosine > best.cosine:
            best = Lowered(backbone=lowered, kept=kept, judges=len(judging), cosine=cosine)
        if best.agrees or (layers >= 2 and best.cosine < HOPELESS):
            break
    assert best is not None
    return best


def rebuilt(backbone: FrozenBackbone, precision: str, kept: Sequence[str], state: Mapping[str, Tensor]) -> FrozenBackbone:
    """The network that :func:`lower` made, rebuilt from its parts in another process.

    Args:
        backbone: The same float32 network, folded.
        precision: As for :func:`lower`.
        kept: From the result of :func:`lower`.
        state: The tensors of the network in lower precision.
    """
    network = _cast(backbone.network, DTYPES[precision], kept)
    for name, module in _layers(network).items():
        if module.bias is None and f"{name}.bias" in state:  # added by the correction
            module.bias = nn.Parameter(torch.empty_like(state[f"{name}.bias"]), requires_grad=False)
    network.load_state_dict(state)
    return _with_network(backbone, network)


def _prefixes(layers: int) -> Iterator[int]:
    yield 0
    count = 1
    while count <= max(1, layers * MOST_FP32_SHARE):
        yield count
        count *= 2


def _cast(network: nn.Module, dtype: torch.dtype, keep: Sequence[str]) -> nn.Module:
    """A copy in ``dtype``, except for BatchNorms, whose statistics must not be rounded, and the layers named in ``keep``."""
    network = copy.deepcopy(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d) or name in keep:
            continue
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for tensor in own:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
        if any(tensor.is_floating_point() for tensor in own) and (isinstance(module, nn.MultiheadAttention) or next(module.children(), None) is None):
            module.register_forward_pre_hook(_match_weights)
    for name in keep:
        network.get_submodule(name).register_forward_pre_hook(_match_weights)
    return network


def _match_weights(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Convert a layer's inputs to the dtype of its weights."""
    dtype = next(t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point())
    return tuple(value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value for value in inputs)


def _layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def _channel_means(module: nn.Module, output: Tensor) -> Tensor:
    # (images, channels, height, width) of a convolution, (..., channels) of a linear layer -> (channels,)
    channels = 1 if isinstance(module, nn.Conv2d) else output.dim() - 1
    return output.float().mean(dim=[dim for dim in range(output.dim()) if dim != channels])


@contextmanager
def _recorded_means(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Each layer's mean output per channel, in the order of first calls; NaN for layers that are called more than once."""
    means: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, _inputs: Any, output: Tensor) -> None:
            means[name] = means[name] * torch.nan if name in means else _channel_means(module, output)

        return hook

    handles = [module.register_forward_hook(record(name)) for name, module in _layers(network).items()]
    try:
        yield means
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _corrected(network: nn.Module, means: dict[str, Tensor]) -> Iterator[None]:
    """During one forward pass, shift each layer's bias so that its output has the recorded mean. Later layers see the shifted output."""

    def correct(wanted: Tensor) -> Any:
        def hook(module: nn.Conv2d | nn.Linear, _inputs: Any, output: Tensor) -> Tensor:
            before = module.bias.float() if module.bias is not None else torch.zeros_like(wanted)
            bias = (before + wanted - _channel_means(module, output)).to(module.weight.dtype)
            module.bias = nn.Parameter(bias, requires_grad=False)
            shift = bias.float() - before
            if isinstance(module, nn.Conv2d):
                shift = shift[:, None, None]
            return (output.float() + shift).to(output.dtype)

        return hook

    layers = _layers(network)
    handles = [layers[name].register_forward_hook(correct(wanted)) for name, wanted in means.items() if wanted.isfinite().all()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
