import pytest
import torch

from model.encoder import build_backbone, feature_shape, with_crop
from model.networks import (
    backbone_names,
    build_network,
    describe,
    info_of_file,
    published_weights,
    random_info,
    random_state,
    state_digest,
    weights_names,
)

PREPROCESSING = with_crop(random_info(256), size=256, mode="squash", filter="lanczos")


def test_random_weights_are_seeded_and_do_not_change_torchs_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = state_digest(random_state("resnet18", seed=3))
    assert torch.equal(torch.rand(3), expected)
    assert state_digest(random_state("resnet18", seed=3)) == first
    assert state_digest(random_state("resnet18", seed=4)) != first


@pytest.mark.parametrize(("name", "dim"), [("resnet152", 2048), ("mobilenet_v3_small", 576), ("swin_t", 768), ("regnet_y_400mf", 440)])
def test_a_networks_description_matches_the_built_network(name: str, dim: int) -> None:
    built = build_backbone(name, random_state(name, seed=0), PREPROCESSING)
    assert describe(name) == (dim, sum(parameter.numel() for parameter in built.parameters()))
    assert feature_shape(built) == (1, dim)


@pytest.mark.full
def test_every_classification_network_of_torchvision_gives_pooled_features() -> None:
    names = backbone_names()
    assert len(names) >= 80
    for name in names:
        dim, parameters = describe(name)
        assert dim >= 256, name
        assert parameters > 0, name


def test_a_state_that_does_not_fit_lists_missing_and_unexpected_keys_and_other_shapes() -> None:
    state = random_state("resnet18", seed=0)
    state["stem.weight"] = state.pop("conv1.weight")
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 1, 1)
    for number in range(12):
        state[f"extra.{number}"] = torch.zeros(1)
    with pytest.raises(ValueError, match="missing keys") as caught:
        build_network("resnet18", state, crop=224)
    message = str(caught.value)
    assert "missing keys: conv1.weight;" in message
    assert "unexpected keys: extra.0, " in message or "unexpected keys: stem.weight, extra.0" in message
    assert "and 5 more" in message
    assert "other shapes: layer1.0.conv1.weight ((64, 64, 1, 1), not (64, 64, 3, 3))" in message


def test_the_classifier_may_be_missing_from_the_weights() -> None:
    state = random_state("resnet18", seed=0)
    complete = build_backbone("resnet18", state, PREPROCESSING)
    del state["fc.weight"], state["fc.bias"]
    image = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)
    assert torch.equal(build_backbone("resnet18", state, PREPROCESSING)(image), complete(image))


def test_weights_without_batch_counters_fit_because_old_files_have_none() -> None:
    state = random_state("densenet121", seed=0)
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert len(old) < len(state)
    built = build_network("densenet121", old, crop=224).state_dict()
    assert all(torch.equal(built[key], value) for key, value in old.items() if key in built)


def test_published_weights_have_their_crop_mean_and_deviation() -> None:
    assert weights_names("resnet152")[0] == "IMAGENET1K_V1"
    assert published_weights("inception_v3", "IMAGENET1K_V1").crop == 299
    assert published_weights("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").crop == 384
    assert published_weights("resnet152", "IMAGENET1K_V2").mean == (0.485, 0.456, 0.406)
    assert info_of_file("vit_b_16", "vit_b_16_swag-9ac1b537.pth").crop == 384
    assert info_of_file("vit_b_16", "my-own.pth").crop == 224


def test_a_transformer_is_built_for_the_crop_of_its_weights() -> None:
    preprocessing = with_crop(published_weights("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"), size=384, mode="squash", filter="lanczos")
    frozen = build_backbone("vit_b_16", random_state("vit_b_16", seed=0, crop=384), preprocessing)
    assert feature_shape(frozen) == (1, 768)
    assert frozen.network.state_dict()["encoder.pos_embedding"].shape[1] == (384 // 16) ** 2 + 1


# timm, where it is installed


def test_timm_networks_are_found_described_and_built_by_name() -> None:
    timm = pytest.importorskip("timm")
    assert "timm:test_resnet" in backbone_names("timm:test_")
    assert weights_names("timm:test_resnet") == ["r160_in1k"]
    assert weights_names("timm:resnet50.a2_in1k") == ["a2_in1k"]
    assert weights_names("timm:resnet50")[0] == "a1_in1k"
    for wrong in ("timm:resnet50.nothing", "timm:nothing"):
        with pytest.raises(KeyError):
            weights_names(wrong)
    info = published_weights("timm:test_vit", "r160_in1k")
    assert (info.crop, len(info.mean)) == (160, 3)
    assert info.mean == timm.models.get_pretrained_cfg("test_vit").mean
    for name in ("timm:test_resnet", "timm:test_vit", "timm:test_efficientnet"):
        frozen = build_backbone(name, random_state(name, seed=0, crop=160), with_crop(info, size=192, mode="squash", filter="lanczos"))
        assert describe(name) == (feature_shape(frozen)[1], sum(parameter.numel() for parameter in frozen.parameters()))
