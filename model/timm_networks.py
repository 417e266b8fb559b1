"""timm's classification networks as ``timm:NAME``, where timm is installed."""

from types import ModuleType
from typing import Any

from torch import Tensor, nn

from model.backbone_sources import BackboneSource, WeightsInfo
from model.feature_layout import GridHead
from model.torchvision_loading import torchvision_models


class TimmNetworks(BackboneSource):
    """timm's networks by timm's names after ``timm:``.

    Weights may be part of the name (``timm:resnet50.a1_in1k``). The network then has no other weights.
    """

    prefix = "timm:"
    install = "pip install '.[timm]'"
    saves_classifier = False

    def names(self) -> list[str]:
        return [self.prefix + name for name in _timm().list_models()]

    def build(self, backbone: str, crop: int) -> nn.Module:
        """As the base class, but already without its classifier."""
        name = backbone.removeprefix(self.prefix)
        # Transformers are built for one image size. Convolutional networks do not accept one.
        options: dict[str, Any] = {"img_size": crop} if _timm().models.get_pretrained_cfg(name).fixed_input_size else {}
        network: nn.Module = _timm().create_model(name, num_classes=0, **options)
        return network

    def feature_map(self, network: nn.Module, pixels: Tensor) -> Tensor:
        found: Tensor = network.forward_features(pixels)  # type: ignore[operator]
        return found

    def grid_head(self, network: nn.Module, layout: str) -> GridHead:
        prefix = int(getattr(network, "num_prefix_tokens", 0))  # class and register tokens
        return GridHead(layout, prefix_tokens=prefix, channels_last=getattr(network, "output_fmt", "NCHW") == "NHWC")

    def classifier_names(self, backbone: str) -> tuple[str, ...]:
        names = _timm().models.get_pretrained_cfg(backbone.removeprefix(self.prefix)).classifier or ()
        return (names,) if isinstance(names, str) else tuple(names)

    def default_crop(self, backbone: str) -> int:
        return int(self._config(backbone).input_size[-1])

    def weights_names(self, backbone: str) -> list[str]:
        timm = _timm()
        name, _, tag = backbone.removeprefix(self.prefix).partition(".")
        if not timm.is_model(name):
            raise KeyError(backbone)
        tags = [config.tag for config in timm.models.get_arch_pretrained_cfgs(name).values() if config.has_weights]
        if tag and tag not in tags:
            raise KeyError(backbone)
        default = timm.models.get_pretrained_cfg(name).tag
        return [tag] if tag else sorted(tags, key=lambda other: other != default)

    def published_weights(self, backbone: str, name: str) -> WeightsInfo:
        config = self._config(backbone, name)
        return WeightsInfo(name=name, crop=int(config.input_size[-1]), mean=tuple(config.mean), std=tuple(config.std))

    def download(self, backbone: str, name: str) -> dict[str, Tensor]:
        architecture = backbone.removeprefix(self.prefix).partition(".")[0]
        try:
            return dict(_timm().create_model(f"{architecture}.{name}", pretrained=True, num_classes=0).state_dict())
        except Exception as error:  # the hub's client has its own exception for each kind of failure
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def _config(self, backbone: str, weights: str = "") -> Any:
        name, _, tag = backbone.removeprefix(self.prefix).partition(".")
        return _timm().models.get_pretrained_cfg(".".join(filter(None, (name, tag or weights))))


def _timm() -> ModuleType:
    """``timm``, imported after torchvision, which it needs."""
    torchvision_models()
    import timm

    return timm


TIMM = TimmNetworks()
