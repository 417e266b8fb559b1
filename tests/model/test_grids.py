"""The features of a network's positions: its last feature map, or the patches of a transformer."""

import pytest
import torch
from torch import nn

from model.backbone_sources import BackboneSource, PooledHead
from model.encoder import backbone_state, build_backbone, feature_shape, mean_is_pooled, with_crop
from model.networks import GridNetwork, random_info, random_state, state_digest
from model.precision import folded
from model.preprocessing import normalize

SMALLER = with_crop(random_info(128), size=128, mode="squash", filter="lanczos")


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", pytest.param("timm:tf_efficientnet_lite0", marks=pytest.mark.full)])
def test_the_mean_over_the_grid_of_a_network_that_averages_is_its_pooled_features(name: str) -> None:
    state = random_state(name, seed=0, crop=112)
    pooled, grid, single = (build_backbone(name, state, SMALLER, layout) for layout in ("pooled", "grid", "grid:1"))
    images = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected, found = pooled(images), grid(images)
    positions, dim = feature_shape(grid)
    assert positions > 4
    assert found.shape == (2, positions, dim)
    torch.testing.assert_close(found.mean(dim=1, keepdim=True), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(single(images), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(folded(grid)(images), found, atol=1e-4, rtol=1e-4)
    assert mean_is_pooled(pooled) and mean_is_pooled(grid)
    assert state_digest(backbone_state(grid)) == state_digest(backbone_state(pooled))


def test_the_grid_of_a_transformer_is_its_patches_whose_mean_is_not_what_it_pools() -> None:
    name, crop = "timm:vit_tiny_patch16_224", SMALLER.crop
    grid = build_backbone(name, random_state(name, seed=0, crop=crop), SMALLER, "grid")
    images = torch.randint(0, 256, (1, crop, crop, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert isinstance(grid.network, GridNetwork)
    tokens = grid.network.network.forward_features(normalize(images, grid.scale, grid.shift))  # type: ignore[operator]
    assert tokens.shape[1] == 1 + 49
    torch.testing.assert_close(grid(images), tokens[:, 1:])
    assert not mean_is_pooled(grid)


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "positions", "is_mean"),
    [
        ("alexnet", 36, True),
        ("vgg11", 49, True),
        ("densenet121", 49, True),
        ("googlenet", 49, True),
        ("convnext_tiny", 49, True),
        ("swin_t", 49, True),
        ("vit_b_32", 49, False),
        ("timm:swin_tiny_patch4_window7_224", 49, True),
        ("timm:vit_small_patch14_reg4_dinov2", 256, False),
        ("timm:vit_xsmall_patch16_clip_224", 196, False),
        ("timm:convnext_atto", 49, False),
        ("timm:resnet50_clip", 49, False),
    ],
)
def test_networks_of_other_families_have_a_grid(name: str, positions: int, is_mean: bool) -> None:
    preprocessing = with_crop(random_info(256), size=256, mode="squash", filter="lanczos")
    grid = build_backbone(name, random_state(name, seed=0), preprocessing, "grid")
    assert feature_shape(grid)[0] == positions
    assert mean_is_pooled(grid) == is_mean


def test_a_smaller_grid_whose_parts_overlap_is_not_the_mean() -> None:
    assert not mean_is_pooled(build_backbone("resnet18", random_state("resnet18", seed=0), SMALLER, "grid:3"))


def test_a_source_without_feature_maps_has_no_grid() -> None:
    class Toy(BackboneSource):
        def names(self) -> list[str]:
            return ["toy"]

        def build(self, backbone: str, crop: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(3, 8, kernel_size=3), PooledHead())

    with pytest.raises(ValueError, match="knows no feature map of Sequential; use pooled features"):
        GridNetwork(Toy().build("toy", 64), Toy(), "grid")(torch.zeros(1, 3, 64, 64))
