import pytest
import torch

from model.encoder import build_backbone, feature_dim, with_crop
from model.networks import describe, random_info, random_state, state_digest

PREPROCESSING = with_crop(random_info(256), size=256, mode="squash", filter="lanczos")


def test_random_weights_are_seeded_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = state_digest(random_state("resnet18", seed=3))
    assert torch.equal(torch.rand(3), expected)
    assert state_digest(random_state("resnet18", seed=3)) == first
    assert state_digest(random_state("resnet18", seed=4)) != first


@pytest.mark.parametrize(("name", "dim"), [("resnet152", 2048), ("mobilenet_v3_small", 576), ("swin_t", 768), ("regnet_y_400mf", 440)])
def test_a_network_is_described_as_it_is_when_built_with_its_weights(name: str, dim: int) -> None:
    built = build_backbone(name, random_state(name, seed=0), PREPROCESSING)
    assert describe(name) == (dim, sum(parameter.numel() for parameter in built.parameters()))
    assert feature_dim(built) == dim
