import pytest
import torch
from torch import nn

from model.encoder import Whitening, backbone_state, build_backbone, calibrate, feature_shape, with_crop
from model.networks import random_info, random_state

PREPROCESSING = with_crop(random_info(64), size=64, mode="squash", filter="lanczos")


def noise(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 56, 56, 3), dtype=torch.uint8, generator=generator)


def test_frozen_buffers_never_change_whoever_calls_train() -> None:
    frozen = build_backbone("resnet18", random_state("resnet18", seed=0), PREPROCESSING)
    parent = nn.Sequential(frozen, nn.Linear(512, 2))
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    parent.train()
    frozen.train(True)
    optimizer = torch.optim.SGD([p for p in parent.parameters() if p.requires_grad], lr=1.0)
    for seed in range(3):
        parent(noise(4, seed)).sum().backward()
        optimizer.step()
    assert not any(module.training for module in frozen.modules())
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("name", "dim"),
    [("resnet18", 512), ("alexnet", 256), ("squeezenet1_1", 512), ("mobilenet_v3_small", 576), ("shufflenet_v2_x0_5", 1024), ("mnasnet0_5", 1280)],
)
def test_networks_of_all_families_give_pooled_features_of_their_own_size(name: str, dim: int) -> None:
    preprocessing = with_crop(random_info(128), size=128, mode="squash", filter="lanczos")
    frozen = build_backbone(name, random_state(name, seed=0), preprocessing)
    assert feature_shape(frozen) == (1, dim)


def test_calibrated_random_features_are_finite_and_white_and_the_same_after_saving() -> None:
    frozen = build_backbone("resnet18", random_state("resnet18", seed=0), PREPROCESSING)
    images = noise(32)
    calibrate(frozen, torch.split(images, 16))
    features = frozen(images)
    assert features.half().isfinite().all()
    assert features.mean(dim=0).abs().max() < 1e-3
    again = build_backbone("resnet18", backbone_state(frozen), PREPROCESSING)
    assert torch.equal(again(images), features)
    assert not frozen.training


def test_a_unit_that_is_constant_in_the_sample_does_not_dominate_the_others() -> None:
    torch.manual_seed(0)
    sample = torch.randn(8, 16)
    sample[:, 3] = 0.0
    whitening = Whitening(16)
    whitening.calibrate(sample)
    loud = sample[:1].clone()
    loud[0, 3] = 1.0
    assert whitening(loud).abs().max() < 2000  # far from overflow in float16; with 1e-6 as the unit's deviation it would be ten million
