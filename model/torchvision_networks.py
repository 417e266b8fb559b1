"""torchvision's classification networks."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.backbone_sources import BackboneSource, PooledHead, WeightsInfo
from model.feature_layout import GridHead
from model.torchvision_loading import torchvision_models

HEAD_NAMES = ("fc", "classifier", "heads", "head")


class TorchvisionNetworks(BackboneSource):
    """torchvision's networks by torchvision's names. The default weights are the first: the tutorial's IMAGENET1K_V1 where there are several."""

    def names(self) -> list[str]:
        models = torchvision_models()
        return [name for name in models.list_models(module=models) if not name.startswith("quantized_")]

    def build(self, backbone: str, crop: int) -> nn.Module:
        if backbone not in self.names():
            raise KeyError(backbone)
        options: dict[str, Any] = {"weights": None}
        if backbone in ("googlenet", "inception_v3"):
            options |= {"aux_logits": False, "init_weights": True, "transform_input": False}  # Capstream normalizes the input itself
        elif backbone.startswith("vit_"):
            options |= {"image_size": crop}
        network: nn.Module = torchvision_models().get_model(backbone, **options)
        return network

    def without_classifier(self, network: nn.Module) -> nn.Module:
        head = next(name for name in HEAD_NAMES if hasattr(network, name))
        setattr(network, head, PooledHead())
        if isinstance(getattr(network, "avgpool", None), nn.AdaptiveAvgPool2d):
            network.avgpool = nn.AdaptiveAvgPool2d(1)  # VGG and AlexNet pool to 7x7 and 6x6
        return network

    def feature_map(self, network: nn.Module, pixels: Tensor) -> Tensor:
        if hasattr(network, "encoder") and hasattr(network, "class_token"):  # VisionTransformer
            return _tokens(network, pixels)
        if hasattr(network, "features"):
            features: Tensor = network.features(pixels)  # type: ignore[operator]
            if hasattr(network, "permute"):  # SwinTransformer
                return network.permute(network.norm(features))  # type: ignore[operator, no-any-return]
            # DenseNet rectifies its last map outside of `features`.
            return functional.relu(features) if isinstance(network, torchvision_models().DenseNet) else features
        features = pixels
        for name, module in network.named_children():
            if name in (*HEAD_NAMES, "avgpool", "dropout"):
                break
            for part in module if isinstance(module, nn.ModuleList) else (module,):
                features = part(features)
        return features

    def grid_head(self, network: nn.Module, layout: str) -> GridHead:
        return GridHead(layout, prefix_tokens=1 if hasattr(network, "class_token") else 0)

    def classifier_names(self, backbone: str) -> tuple[str, ...]:
        del backbone
        return HEAD_NAMES

    def weights_names(self, backbone: str) -> list[str]:
        if backbone not in self.names():
            raise KeyError(backbone)
        return [member.name for member in torchvision_models().get_model_weights(backbone)]

    def published_weights(self, backbone: str, name: str) -> WeightsInfo:
        transforms = torchvision_models().get_model_weights(backbone)[name].transforms()
        return WeightsInfo(name=name, crop=int(transforms.crop_size[0]), mean=tuple(transforms.mean), std=tuple(transforms.std))

    def weights_of_file(self, backbone: str, file_name: str) -> str | None:
        members = {PurePath(urlsplit(member.url).path).name: member.name for member in torchvision_models().get_model_weights(backbone)}
        return members.get(file_name)

    def download(self, backbone: str, name: str) -> dict[str, Tensor]:
        # The download is checked against the hash in its file name.
        state: dict[str, Tensor] = torchvision_models().get_model_weights(backbone)[name].get_state_dict(progress=False, check_hash=True)
        return state

    def with_current_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """DenseNet's published files still use the names of torch 0.3 ("norm.1.weight"). torchvision's own loader renames them too."""
        renamed = {}
        for key, value in state.items():
            name = key
            if "denselayer" in key:
                for part in ("norm", "relu", "conv"):
                    for digit in ("1", "2"):
                        name = name.replace(f".{part}.{digit}.", f".{part}{digit}.")
            renamed[name] = value
        return renamed


def _tokens(network: Any, pixels: Tensor) -> Tensor:
    """The outputs of a VisionTransformer's encoder, float (images, 1 + patches, dim): the class token is the first."""
    patches = network._process_input(pixels)
    encoded: Tensor = network.encoder(torch.cat([network.class_token.expand(patches.shape[0], -1, -1), patches], dim=1))
    return encoded


TORCHVISION = TorchvisionNetworks()
