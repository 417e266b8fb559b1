"""Where frozen networks come from: torchvision, timm, or a network registered by name.

A source lists its networks and builds them, and knows their published weights. :data:`BACKBONE_SOURCES` has the sources by name;
:mod:`model.networks` loads weights into what they build. A source of one network is a class with two methods:

    class Toy(BackboneSource):
        def names(self) -> list[str]:
            return ["toy"]

        def build(self, backbone: str, crop: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 8, kernel_size=3, stride=2), nn.ReLU(), PooledHead())

    BACKBONE_SOURCES.register("toy", Toy())
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from model.feature_layout import POOLED, GridHead
from model.registry import Registry


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """The input that weights were trained with.

    Attributes:
        name: The weights' name.
        crop: The side of the square input in pixels.
        mean, std: Per channel (R, G, B), for pixels scaled to 0..1.
    """

    name: str
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class PooledHead(nn.Module):
    """Takes the place of a network's classifier: returns the classifier's input, averaged over height and width if it still has them."""

    def forward(self, features: Tensor) -> Tensor:
        # features: (images, dim) or (images, dim, height, width)
        return features.mean(dim=(2, 3)) if features.dim() == 4 else features


class BackboneSource(ABC):
    """A library of classification networks, or a single one.

    Networks are named in full everywhere: with the prefix where the source has one.
    """

    prefix = ""
    """What all names begin with, such as ``timm:``."""
    install = ""
    """The command that installs the library where it is optional."""
    saves_classifier = True
    """Whether :meth:`download` keeps the classifier's weights, so that they count for the digest of weights."""

    @abstractmethod
    def names(self) -> list[str]:
        """Names of all networks.

        Raises:
            ImportError: The library is not installed.
        """

    @abstractmethod
    def build(self, backbone: str, crop: int) -> nn.Module:
        """A network with random weights, with its classifier, for square images of ``crop`` pixels.

        Raises:
            KeyError: There is no such network.
            AssertionError, RuntimeError: It cannot be built for this crop.
        """

    def without_classifier(self, network: nn.Module) -> nn.Module:
        """The network that :meth:`build` made, from float (images, 3, crop, crop) to (images, dim)."""
        return network

    def feature_map(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """What a network computes before it averages: its last feature map, or a transformer's tokens.

        Args:
            network: As :meth:`without_classifier` returned it.
            pixels: float (images, 3, crop, crop).

        Returns:
            What :meth:`grid_head` takes.

        Raises:
            ValueError: This network has no positions.
        """
        del pixels
        raise ValueError(f"its source knows no feature map of {type(network).__name__}; use {POOLED} features")

    def grid_head(self, network: nn.Module, layout: str) -> GridHead:
        """What makes features in the layout of a grid from :meth:`feature_map`."""
        del network
        return GridHead(layout)

    def classifier_names(self, backbone: str) -> tuple[str, ...]:
        """Names of the modules that :meth:`without_classifier` removes: their weights may be missing, and are ignored."""
        del backbone
        return ()

    def default_crop(self, backbone: str) -> int:
        """Side of a square input that suits the network, in pixels."""
        del backbone
        return 224

    def weights_names(self, backbone: str) -> list[str]:
        """Names of the network's published weights, the default first.

        Raises:
            KeyError: There is no such network, or not with the weights in its name.
        """
        if backbone not in self.names():
            raise KeyError(backbone)
        return []

    def published_weights(self, backbone: str, name: str) -> WeightsInfo:
        """The input that published weights were trained with. Raises KeyError if there are none of this name."""
        raise KeyError(f"{backbone} {name}")

    def weights_of_file(self, backbone: str, file_name: str) -> str | None:
        """The name of the published weights that are distributed in a file of this name, if the source knows it."""
        del backbone, file_name
        return None

    def download(self, backbone: str, name: str) -> dict[str, Tensor]:
        """Published weights.

        Raises:
            KeyError: There are no such weights.
            OSError: There is no network connection (urllib's URLError is an OSError), or no space.
            RuntimeError: The download is damaged or failed otherwise.
        """
        raise KeyError(f"{backbone} {name}")

    def with_current_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights with the tensors' names of today, where published files still use older ones."""
        return dict(state)


BACKBONE_SOURCES: Registry[BackboneSource] = Registry(
    "source of backbones", torchvision="model.torchvision_networks:TORCHVISION", timm="model.timm_networks:TIMM"
)


def source_name(backbone: str) -> str:
    """The name of the source that a network's name, or the beginning of one, belongs to: ``torchvision`` if no other source claims it.

    >>> source_name("resnet50"), source_name("timm:resnet50")
    ('torchvision', 'timm')
    """
    for name, source in BACKBONE_SOURCES.items():
        if source.prefix and backbone.startswith(source.prefix):
            return name
    unprefixed = (name for name, source in BACKBONE_SOURCES.items() if not source.prefix and backbone in source.names())
    return next(unprefixed, "torchvision")


def source_of(backbone: str) -> BackboneSource:
    """The source that :func:`source_name` names."""
    return BACKBONE_SOURCES[source_name(backbone)]
