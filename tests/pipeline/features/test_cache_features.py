import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file
from torch.nn import functional

from model.networks import random_state
from pipeline.backbone.backbones import KEPT_FILE, open_backbone
from pipeline.features.calibration import calibration_batches
from pipeline.features.views import crop_boxes
from pipeline.images.decode import Resize
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.read_samples import decode_sample, shard_samples
from pipeline.sharding.shard import write_shards
from shards.dataset import open_split
from shards.errors import DamageError, InputError, MismatchError, OccupiedError, ResourceError
from shards.features import open_features
from tests.caching import cache_features
from tests.conftest import Small, shard_small

RESNET: dict[str, Any] = {"backbone": "resnet18", "weights": "random", "device": "cpu", "precision": "fp32"}


def with_kept_weights(small: Small, out: Path) -> Path:
    """A folder that holds the random weights of the small dataset's cache, and nothing else."""
    out.mkdir(parents=True)
    shutil.copy(small.features / KEPT_FILE, out / KEPT_FILE)
    return out


def features_of(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return np.asarray(open_features(path).features, dtype=np.float32)


def test_features_are_those_of_the_frozen_network_on_the_centre_crop(small: Small) -> None:
    split = open_split(small.shards, "train")
    network, frozen = open_backbone(
        backbone="resnet18",
        weights="random",
        resize=split.config["resize"],
        kept=small.features / KEPT_FILE,
        sample=lambda crop: calibration_batches(split, crop),
    )
    file = open_features(small.features / "train.h5")
    assert file.provenance.weights_sha256 == network.weights_sha256
    assert network.declared_preprocessing().crop == 56
    row = 0
    for shard in split.shards:
        for sample, jpeg, record in shard_samples(shard):
            pixels = decode_sample(shard, sample.key, jpeg)[4:60, 4:60]
            expected = frozen(torch.from_numpy(pixels[None].copy()))[0].numpy()
            np.testing.assert_allclose(file.features[row, 0].astype(np.float32), expected, atol=0.02)
            assert (file.table.keys[row], file.table.image_ids[row], file.table.file_names[row]) == (
                sample.key,
                record["image_id"],
                record["file_name"],
            )
            row += 1
    assert row == file.table.images == 36
    assert np.isfinite(file.features).all()
    deviation = file.features[:, 0].astype(np.float32).std(axis=0)
    assert (deviation > 0.5).sum() >= 30  # 36 images span 35 directions; each is white


def test_both_splits_share_the_weights_and_a_second_run_does_nothing(small: Small) -> None:
    before = {p: p.stat().st_mtime_ns for p in small.features.iterdir()}
    summaries = cache_features(shards=small.shards, out=small.features, backbone="resnet18", weights="random", device="cpu")
    assert [(s.split, s.kept) for s in summaries] == [("train", True), ("val", True)]
    assert {p: p.stat().st_mtime_ns for p in small.features.iterdir()} == before
    assert len({open_features(small.features / f"{s}.h5").provenance.weights_sha256 for s in ("train", "val")}) == 1


def test_the_file_does_not_depend_on_the_number_of_decoding_processes(small: Small, tmp_path: Path) -> None:
    files = []
    for workers in (1, 3):
        out = with_kept_weights(small, tmp_path / str(workers))
        cache_features(shards=small.shards, out=out, splits=["train"], workers=workers, batch_size=4, **RESNET)
        files.append((out / "train.h5").read_bytes())
    assert files[0] == files[1]


# Views


def test_every_view_holds_the_features_of_its_crop(small: Small, tmp_path: Path) -> None:
    split = open_split(small.shards, "val")
    for views in ("flip", "ten-crop", "random:3"):
        out = with_kept_weights(small, tmp_path / views.replace(":", "-"))
        summary = cache_features(shards=small.shards, out=out, splits=["val"], views=views, **RESNET)[0]
        file = open_features(out / "val.h5")
        assert file.features.shape == (4, summary.views, 1, 512)
        np.testing.assert_allclose(file.features[:, 0], open_features(small.features / "val.h5").features[:, 0], atol=0.02)
        _, frozen = open_backbone(backbone="resnet18", weights="random", resize=split.config["resize"], kept=out / KEPT_FILE, sample=lambda _: [])
        for row, (sample, jpeg, _) in enumerate(shard_samples(split.shards[0])):
            pixels = torch.from_numpy(decode_sample(split.shards[0], sample.key, jpeg))
            where = crop_boxes(file.provenance.views, position=row, height=64, width=64, crop=56)
            crops = [pixels[p.top : p.top + 56, p.left : p.left + 56].flip(1 if p.flipped else ()) for p in where]
            np.testing.assert_allclose(file.features[row].astype(np.float32), frozen(torch.stack(crops)).numpy(), atol=0.02)


def test_random_views_are_the_same_whatever_the_shards_and_batches(small: Small, tmp_path: Path) -> None:
    shard_small(small.source, tmp_path / "shards", "val", shard_size=3)
    found = []
    for shards, batch_size in ((small.shards, 32), (tmp_path / "shards", 1)):
        out = with_kept_weights(small, tmp_path / str(batch_size))
        cache_features(shards=shards, out=out, splits=["val"], views="random:2", batch_size=batch_size, **RESNET)
        found.append(features_of(out / "val.h5"))
    np.testing.assert_allclose(found[0], found[1], atol=0.02)
    assert np.abs(found[0][:, 1] - found[0][:, 2]).max() > 0.1


# What does not fit


def test_a_cache_of_other_shards_is_refused_with_both_digests(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.features, tmp_path / "features")
    shard_small(small.source, tmp_path / "shards", "val")
    shard_small(small.source, tmp_path / "shards", "train", shard_size=7)
    old, new = open_split(small.shards, "train").digest, open_split(tmp_path / "shards", "train").digest
    with pytest.raises(MismatchError, match=f"{old}.*{new}"):
        cache_features(shards=tmp_path / "shards", out=tmp_path / "features", backbone="resnet18", weights="random", device="cpu")


def test_another_network_views_or_precision_on_the_same_folder_are_refused(small: Small) -> None:
    with pytest.raises(MismatchError, match=r"random weights of resnet18, not of alexnet"):
        cache_features(shards=small.shards, out=small.features, backbone="alexnet", weights="random", device="cpu")
    with pytest.raises(MismatchError, match=r"another views: center, not center, center-flipped"):
        cache_features(shards=small.shards, out=small.features, views="flip", **RESNET)
    with pytest.raises(MismatchError, match=r"another precision: fp32, not fp16"):
        cache_features(shards=small.shards, out=small.features, **{**RESNET, "precision": "fp16"})


def test_other_weights_on_the_same_folder_are_refused_with_both_digests(small: Small, tmp_path: Path) -> None:
    shard_small(small.source, tmp_path / "shards", "val")
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    resize = Resize(size=256)
    write_shards(
        images=small.source / "images",
        captions=small.source / "captions_val.json",
        out=tmp_path / "large",
        split="val",
        config=ShardConfig(resize=resize),
    )
    for seed, path in enumerate(paths):
        save_file(random_state("squeezenet1_1", seed=seed), path)
    common: dict[str, Any] = {"shards": tmp_path / "large", "out": tmp_path / "out", "backbone": "squeezenet1_1", "device": "cpu"}
    cache_features(weights=str(paths[0]), **common)
    first = open_features(tmp_path / "out" / "val.h5").provenance.weights_sha256
    with pytest.raises(MismatchError, match=rf"digest of the weights: {first}, not (?!{first})[0-9a-f]{{64}}"):
        cache_features(weights=str(paths[1]), **common)


def test_wrong_names_and_numbers_say_what_there_is(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="resnet152"):
        cache_features(shards=small.shards, out=out, backbone="resnet1520", weights="random")
    with pytest.raises(InputError, match="IMAGENET1K_V1, IMAGENET1K_V2, random"):
        cache_features(shards=small.shards, out=out, backbone="resnet152", weights="IMAGENET")
    with pytest.raises(InputError, match=r"no split 'test' \(available: train, val\)"):
        cache_features(shards=small.shards, out=out, splits=["test"])
    with pytest.raises(InputError, match=r"`views` five-crop: must be center, flip, ten-crop or random:K"):
        cache_features(shards=small.shards, out=out, views="five-crop")
    with pytest.raises(InputError, match=r"`precision` int8: must be one of auto, fp32, bf16, fp16"):
        cache_features(shards=small.shards, out=out, precision="int8")
    with pytest.raises(InputError, match=r"`batch_size` 0: must be at least 1"):
        cache_features(shards=small.shards, out=out, batch_size=0)
    with pytest.raises(InputError, match=r"`device` cpu,tpu:7|`device` tpu:7"):
        cache_features(shards=small.shards, out=out, device="cpu,tpu:7")
    assert not list(out.glob("*"))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("x")
    with pytest.raises(OccupiedError, match=r"thesis\.tex"):
        cache_features(shards=small.shards, out=tmp_path / "d", backbone="resnet18", weights="random")


def test_a_crop_larger_than_the_shards_names_the_size_that_would_do(small: Small, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(random_state("resnet18", seed=0), path)
    with pytest.raises(InputError, match=r"crop of 224 pixels.*images of 64.*`size` 256"):
        cache_features(shards=small.shards, out=tmp_path / "out", backbone="resnet18", weights=str(path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b"\x80\x02cos\nsystem\n."])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_that_are_none_are_refused_by_name(tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"evil.{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"evil\.{ending}: not a weights file"):
        open_backbone(
            backbone="resnet18",
            weights=str(path),
            resize={"size": 256, "mode": "squash", "filter": "lanczos"},
            kept=tmp_path / KEPT_FILE,
            sample=lambda _: [],
        )


def test_without_network_the_error_names_the_other_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(ResourceError, match=r"IMAGENET1K_V1 of resnet18.*set `weights` to the path.*or to random"):
        open_backbone(
            backbone="resnet18",
            weights="IMAGENET1K_V1",
            resize={"size": 256, "mode": "squash", "filter": "lanczos"},
            kept=tmp_path / KEPT_FILE,
            sample=lambda _: [],
        )


def test_a_network_that_gives_no_number_stops_the_pass_and_the_sample_is_named(small: Small, tmp_path: Path) -> None:
    state = random_state("squeezenet1_1", seed=0)
    state["features.0.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    write_shards(
        images=small.source / "images",
        captions=small.source / "captions_val.json",
        out=tmp_path / "shards",
        split="val",
        config=ShardConfig(resize=Resize(size=256)),
    )
    common: dict[str, Any] = {"shards": tmp_path / "shards", "out": tmp_path / "out", "backbone": "squeezenet1_1", "device": "cpu"}
    with pytest.raises(DamageError, match=r"val-000000\.tar: sample 000000000: the network's features contain NaN or inf.*`weights`"):
        cache_features(weights=str(tmp_path / "nan.safetensors"), **common)
    assert not (tmp_path / "out" / "val.h5").exists()


# Precision


@pytest.fixture(scope="module", params=[8, pytest.param(99, marks=pytest.mark.full)])
def photographs(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few or all of the 99 real photographs as three shards of 256 pixels. Many CPUs take a second per image and network in bf16."""
    out = tmp_path_factory.mktemp("photographs") / "shards"
    images, captions = data / "coco-cc" / "images", data / "coco-cc" / "captions.json"
    config = ShardConfig(shard_size=request.param // 3 + 1, limit=request.param)
    write_shards(images=images, captions=captions, out=out, config=config, workers=2)
    return out


@pytest.fixture(scope="module")
def real(photographs: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Features of the real photographs by the real MobileNetV2 weights, in any precision."""
    base = tmp_path_factory.mktemp("real")

    def cached(precision: str, device: str = "cpu") -> Path:
        out = base / f"{precision}-{device}"
        weights = data / "weights" / "mobilenet_v2_tf2ptq-2d2ba5d1.pth"
        cache_features(shards=photographs, out=out, backbone="mobilenet_v2", weights=str(weights), device=device, precision=precision)
        return out / "train.h5"

    return cached


def test_bf16_features_of_real_photographs_by_real_weights_agree_with_fp32(photographs: Path, real: Callable[..., Path]) -> None:
    exact, lowered = (torch.from_numpy(features_of(real(precision))).flatten(1).double() for precision in ("fp32", "bf16"))
    cosine = functional.cosine_similarity(exact, lowered, dim=1)
    assert len(cosine) == open_split(photographs, "train").images
    assert cosine.min() >= 0.9995
    assert not torch.equal(exact, lowered)
    provenance = open_features(real("bf16")).provenance
    assert provenance.precision == "bf16"
    assert provenance.arithmetic["smallest_cosine"] >= 0.9995
    assert provenance.arithmetic["fp32_layers"] <= 8


def test_auto_goes_back_to_fp32_where_the_faster_arithmetic_does_not_agree(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    out = with_kept_weights(small, tmp_path / "out")
    notes: list[str] = []
    summary = cache_features(shards=small.shards, out=out, splits=["val"], report=notes.append, **{**RESNET, "precision": "auto"})[0]
    assert summary.precision == "fp32"  # whitened features of random weights
    assert any("bf16 does not agree well enough" in note for note in notes)
    assert open_features(out / "val.h5").provenance.precision == "fp32"


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler")
def test_a_long_pass_is_compiled_and_goes_on_to_the_same_bytes(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.backbone.precision.COMPILE_FROM_IMAGES", 30)
    remove = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda folder, *args, **kwargs: None if Path(folder).name == ".train.parts" else remove(folder, *args, **kwargs)
    )
    out = with_kept_weights(small, tmp_path / "out")
    files = []
    for _ in range(2):
        cache_features(shards=small.shards, out=out, splits=["train"], batch_size=4, **RESNET)
        files.append((out / "train.h5").read_bytes())
        (out / "train.h5").rename(tmp_path / "train.h5")
        for part in sorted((out / ".train.parts").iterdir())[2:]:  # the first two stay, as from a pass that was killed
            part.unlink()
    assert files[0] == files[1]
    assert open_features(tmp_path / "train.h5").provenance.arithmetic["compiled"] is True
    np.testing.assert_allclose(features_of(tmp_path / "train.h5"), features_of(small.features / "train.h5"), atol=0.02)


def test_a_split_is_cached_where_another_ones_tars_are_gone(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.shards, tmp_path / "shards", ignore=shutil.ignore_patterns("train-*.tar"))
    out = with_kept_weights(small, tmp_path / "out")
    assert cache_features(shards=tmp_path / "shards", out=out, splits=["val"], **RESNET)[0].images == 4
    with pytest.raises(DamageError, match=r"train-000000\.tar: is missing"):
        cache_features(shards=tmp_path / "shards", out=out, splits=["train"], **RESNET)


def test_both_precisions_are_judged_by_the_same_photographs_whichever_split_is_cached(photographs: Path, data: Path, tmp_path: Path) -> None:
    folder, weights = data / "coco-cc", data / "weights" / "mobilenet_v2_tf2ptq-2d2ba5d1.pth"
    shutil.copytree(photographs, tmp_path / "shards")
    write_shards(images=folder / "images", captions=folder / "captions.json", out=tmp_path / "shards", split="val", config=ShardConfig(limit=5))
    common: dict[str, Any] = {"shards": tmp_path / "shards", "backbone": "mobilenet_v2", "weights": str(weights), "device": "cpu"}
    for out, splits in (("both", []), ("val", ["val"])):
        cache_features(out=tmp_path / out, splits=splits, precision="bf16", **common)
    assert (tmp_path / "both" / "val.h5").read_bytes() == (tmp_path / "val" / "val.h5").read_bytes()


# Several devices


def test_several_devices_share_the_shards_and_the_file_is_the_same_within_rounding(small: Small, tmp_path: Path) -> None:
    out = with_kept_weights(small, tmp_path / "out")
    summary = cache_features(shards=small.shards, out=out, splits=["train"], **{**RESNET, "device": "cpu,cpu"})[0]
    assert summary.images == 36
    one, two = open_features(small.features / "train.h5"), open_features(out / "train.h5")
    assert one.table.keys == two.table.keys
    assert one.table.texts == two.table.texts
    np.testing.assert_allclose(one.features.astype(np.float32), two.features.astype(np.float32), atol=0.02)


def test_lowered_networks_of_several_devices_are_the_same_tensors(real: Callable[..., Path]) -> None:
    one, two = open_features(real("bf16")), open_features(real("bf16", "cpu,cpu"))
    assert one.provenance.arithmetic["tensors_sha256"] == two.provenance.arithmetic["tensors_sha256"]
    first, second = (torch.from_numpy(np.asarray(file.features[:, 0, 0], np.float64)) for file in (one, two))
    cosine = functional.cosine_similarity(first, second, dim=1)
    assert cosine.min() > 0.9999


def test_damage_that_one_of_several_devices_meets_stops_all_of_them(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.shards, tmp_path / "shards")
    split = open_split(tmp_path / "shards", "train")
    place = split.shards[1].sidecar.samples[3].jpg.offset + 50
    with split.shards[1].path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    out = with_kept_weights(small, tmp_path / "out")
    with pytest.raises(DamageError, match=r"train-000001\.tar: sample 000000013"):
        cache_features(shards=tmp_path / "shards", out=out, splits=["train"], **{**RESNET, "device": "cpu,cpu"})
    assert not multiprocessing.active_children()


def test_the_command_says_what_it_did_and_what_comes_next(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    out = with_kept_weights(small, tmp_path / "out")
    options = ["--backbone", "resnet18", "--weights", "random", "--device", "cpu", "--views", "flip", "--split", "val"]
    result = run_cli("cache-features", "--shards", small.shards, "--out", out, *options)
    assert result.exit_code == 0, result.output
    assert f"{out / 'val.h5'}: 4 images, 2 views of 512 features each, fp32" in result.output
    assert result.output.splitlines()[-1] == f"Next: python cli.py train --features {out} --out runs/first"
    again = run_cli("cache-features", "--shards", small.shards, "--out", out, *options)
    assert "(complete already)" in again.output
