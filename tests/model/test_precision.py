import contextlib
import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from model.encoder import FrozenBackbone, backbone_state, build_backbone, with_crop
from model.networks import random_info, random_state
from model.precision import AGREEMENT, compiled, fold_batch_norms, folded, lower, rebuilt
from model.preprocessing import center_crop
from pipeline.images.decode import Resize, load_image

PREPROCESSING = with_crop(random_info(64), size=64, mode="squash", filter="lanczos")


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def frozen(name: str) -> FrozenBackbone:
    """A network whose BatchNorm statistics are not the initial ones."""
    state = random_state(name, seed=0)
    generator = torch.Generator().manual_seed(1)
    for key, value in state.items():
        if key.endswith("running_mean"):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        elif key.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return build_backbone(name, state, PREPROCESSING)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(("name", "left"), [("resnet18", 0), ("mobilenet_v2", 0), ("shufflenet_v2_x0_5", 0), ("densenet121", 62)])
def test_folding_does_not_change_the_features(name: str, left: int) -> None:
    before = frozen(name)
    statistics = {key: value.clone() for key, value in before.state_dict().items()}
    after = folded(before)
    assert norms(after.network) == left
    torch.testing.assert_close(after(noise(4)), before(noise(4)), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, statistics[key]) for key, value in before.state_dict().items())


class Branching(nn.Module):
    """A convolution whose output is used elsewhere too, and one that is used twice: no BatchNorm may be folded into either."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        for norm in (self.norm, self.other):
            norm.running_var = torch.tensor([0.5, 2.0, 3.0])

    def forward(self, pixels: Tensor) -> Tensor:
        branch = self.first(pixels)
        return self.norm(branch) + branch + self.other(self.twice(self.twice(pixels)))  # type: ignore[no-any-return]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.norm(self.convolution(pixels))
        return features if features.sum() > 0 else -features


@pytest.mark.parametrize("network", [Branching, Untraceable])
def test_what_cannot_be_folded_is_left_unchanged(network: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    original = network().eval()
    pixels = torch.randn(2, 3, 5, 5)
    result = fold_batch_norms(original)
    assert norms(result) == norms(original)
    assert torch.equal(result(pixels), original(pixels))


class Pooled(nn.Module):
    """Two layers and a mean: small enough to compute the effect of lower precision by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(3, 8, 3), nn.Linear(8, 4, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(functional.relu(self.convolution(pixels)).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def test_layers_in_lower_precision_have_the_mean_output_of_float32_on_the_correcting_images() -> None:
    torch.manual_seed(0)
    network = Pooled()
    nn.init.constant_(network.convolution.weight, 1.0034)  # rounded to 1.0 in bfloat16: 0.34 percent too small
    exact = FrozenBackbone(network, PREPROCESSING)
    sample = 255 - noise(16) // 4
    plain = FrozenBackbone(copy.deepcopy(exact.network).bfloat16(), PREPROCESSING)
    plain.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16(),))
    wanted = exact(sample[0::2]).mean(dim=0)
    lowered = lower(exact, "bf16", sample)
    assert lowered.kept == ()
    assert lowered.judges == 8
    assert lowered.agrees
    biased = (plain(sample[0::2]).mean(dim=0) - wanted).abs().max()
    corrected = (lowered.backbone(sample[0::2]).mean(dim=0) - wanted).abs().max()
    assert biased > 0.003 * wanted.abs().max()
    assert corrected < 0.5 * biased  # the rest is the rounding of the biases


def test_the_cosine_is_the_smallest_on_images_not_used_for_the_correction() -> None:
    exact = folded(frozen("resnet18"))
    sample = noise(12)
    lowered = lower(exact, "bf16", sample)
    cosines = functional.cosine_similarity(exact(sample[1::2]).flatten(1).double(), lowered.backbone(sample[1::2]).flatten(1).double(), dim=1)
    assert lowered.cosine == pytest.approx(float(cosines.min()), abs=1e-6)
    assert lowered.cosine > 0.999
    assert next(lowered.backbone.parameters()).dtype is torch.bfloat16
    assert next(exact.parameters()).dtype is torch.float32


@pytest.fixture(scope="module", params=[6, pytest.param(16, marks=pytest.mark.full)])
def mobilenet(request: pytest.FixtureRequest, data: Path) -> tuple[FrozenBackbone, Tensor]:
    """A network with real weights whose features do not agree in bfloat16 without correction, and some real images."""
    state = torch.load(data / "weights" / "mobilenet_v2_tf2ptq-2d2ba5d1.pth", weights_only=True)
    preprocessing = with_crop(random_info(256), size=256, mode="squash", filter="lanczos")
    paths = sorted((data / "coco-cc" / "images").iterdir())[: request.param]
    images = center_crop([torch.from_numpy(load_image(path, Resize(size=256))) for path in paths], 224)
    return folded(build_backbone("mobilenet_v2", state, preprocessing)), images


def test_as_few_first_layers_as_needed_stay_float32_unchanged(mobilenet: tuple[FrozenBackbone, Tensor]) -> None:
    exact, images = mobilenet
    lowered = lower(exact, "bf16", images)
    assert lowered.agrees
    assert 1 <= len(lowered.kept) <= 4
    assert lowered.kept[0] == "features.0.0"
    before, after = exact.network.state_dict(), lowered.backbone.network.state_dict()
    for name in lowered.kept:
        assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])
    assert after["features.18.0.weight"].dtype is torch.bfloat16


def test_without_the_correction_half_precision_does_not_agree(mobilenet: tuple[FrozenBackbone, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    exact, images = mobilenet
    monkeypatch.setattr("model.precision._corrected", lambda *_: contextlib.nullcontext())
    assert lower(exact, "bf16", images).cosine < AGREEMENT


def test_a_network_in_lower_precision_is_rebuilt_with_the_same_features(mobilenet: tuple[FrozenBackbone, Tensor]) -> None:
    for exact, sample in (mobilenet, (folded(frozen("densenet121")), noise(4))):
        lowered = lower(exact, "bf16", sample)
        again = rebuilt(exact, "bf16", lowered.kept, load(save(backbone_state(lowered.backbone))))
        assert torch.equal(again(sample), lowered.backbone(sample))


def test_fp16_agrees_more_closely_than_bf16() -> None:
    exact = folded(frozen("resnet18"))
    assert lower(exact, "fp16", noise(8)).cosine > lower(exact, "bf16", noise(8)).cosine


@pytest.mark.parametrize("name", ["swin_t", "convnext_tiny", "densenet121", "efficientnet_b0", "regnet_y_400mf", "googlenet", "squeezenet1_1"])
def test_networks_of_all_families_run_in_bf16(name: str) -> None:
    preprocessing = with_crop(random_info(128), size=128, mode="squash", filter="lanczos")
    exact = folded(build_backbone(name, random_state(name, seed=0, crop=112), preprocessing))
    images = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8)
    lowered = lower(exact, "bf16", images)
    assert lowered.backbone(images).shape == exact(images).shape
    assert lowered.backbone(images).isfinite().all()
    assert next(lowered.backbone.network.parameters()).dtype in (torch.bfloat16, torch.float32)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_gives_the_same_features_for_batches_of_any_size() -> None:
    exact = folded(frozen("squeezenet1_1"))
    fast = compiled(exact, 4)
    for count in (4, 3, 1):
        torch.testing.assert_close(fast(noise(count)), exact(noise(count)), rtol=1e-3, atol=1e-4)
