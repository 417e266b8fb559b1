"""A network as bytes, for processes that build it themselves: one per device, or the tasks of a cluster."""

from dataclasses import dataclass

from safetensors.torch import load, save

from model.encoder import FrozenBackbone, backbone_state, build_backbone
from model.precision import folded, rebuilt
from pipeline.backbone.backbones import Network
from pipeline.backbone.precision import ComputedBackbone


@dataclass(frozen=True, kw_only=True, eq=False)
class PortableNetwork:
    """A network that another process can build, without a weights file.

    Attributes:
        network: What it is.
        exact: Its tensors in float32, as safetensors bytes.
        precision, kept: Of the lowered network.
        state: The lowered network's tensors as safetensors bytes; None in fp32.
    """

    network: Network
    exact: bytes
    precision: str = "fp32"
    kept: tuple[str, ...] = ()
    state: bytes | None = None

    def build(self) -> FrozenBackbone:
        """The network, on the CPU, folded."""
        frozen = folded(self.build_exact())
        return frozen if self.state is None else rebuilt(frozen, self.precision, self.kept, load(self.state))

    def build_exact(self) -> FrozenBackbone:
        """The network in float32, on the CPU, with its BatchNorms."""
        return build_backbone(self.network.backbone, load(self.exact), self.network.declared_preprocessing(), self.network.layout)

    def lowered(self, computed: ComputedBackbone) -> "PortableNetwork":
        """The same network in the precision in which it is computed."""
        state = save(backbone_state(computed.frozen, whitening=False)) if computed.precision != "fp32" else None
        return PortableNetwork(network=self.network, exact=self.exact, precision=computed.precision, kept=computed.kept, state=state)


def portable_network(network: Network, exact: FrozenBackbone) -> PortableNetwork:
    """Make a float32 network portable."""
    return PortableNetwork(network=network, exact=save(backbone_state(exact)))
