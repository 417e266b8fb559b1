import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from model.encoder import backbone_state, random_state
from pipeline.backbones import KEPT_FILE, open_backbone
from pipeline.cache_features import cache_features, calibration_batches, half_features
from pipeline.reading import decode_sample, shard_samples
from shards.errors import DamageError, InputError, MismatchError, OccupiedError, ResourceError
from shards.features import open_features
from shards.manifest import open_split
from tests.conftest import Small, shard_small

ROOT = Path(__file__).parent.parent.parent


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
    assert network.preprocessing.crop == 56
    row = 0
    for shard in split.shards:
        for sample, jpeg, record in shard_samples(shard):
            pixels = decode_sample(shard, sample.key, jpeg)[4:60, 4:60]
            expected = half_features(frozen, torch.from_numpy(pixels[None].copy()), ["x"])[0]
            np.testing.assert_allclose(file.features[row, 0].astype(np.float32), expected.astype(np.float32), atol=0.02)
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


def test_a_cache_of_other_shards_is_refused_with_both_digests(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.features, tmp_path / "features")
    shard_small(small.source, tmp_path / "shards", "val")
    shard_small(small.source, tmp_path / "shards", "train", shard_size=7)
    old, new = open_split(small.shards, "train").digest, open_split(tmp_path / "shards", "train").digest
    with pytest.raises(MismatchError, match=f"{old}.*{new}"):
        cache_features(shards=tmp_path / "shards", out=tmp_path / "features", backbone="resnet18", weights="random", device="cpu")


def test_another_network_on_the_same_folder_is_refused(small: Small) -> None:
    with pytest.raises(MismatchError, match=r"random weights of resnet18, asked for alexnet"):
        cache_features(shards=small.shards, out=small.features, backbone="alexnet", weights="random", device="cpu")


def test_wrong_names_say_what_there_is(small: Small, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resnet152"):
        cache_features(shards=small.shards, out=tmp_path / "a", backbone="resnet1520", weights="random")
    with pytest.raises(InputError, match="IMAGENET1K_V1, IMAGENET1K_V2, random"):
        cache_features(shards=small.shards, out=tmp_path / "b", backbone="resnet152", weights="IMAGENET")
    with pytest.raises(InputError, match=r"no split 'test' \(there: train, val\)"):
        cache_features(shards=small.shards, out=tmp_path / "c", splits=["test"])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.tex").write_text("x")
    with pytest.raises(OccupiedError, match=r"thesis\.tex"):
        cache_features(shards=small.shards, out=tmp_path / "d", backbone="resnet18", weights="random")


def test_a_crop_larger_than_the_shards_names_the_size_that_would_do(small: Small, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(random_state("resnet18", seed=0), path)
    with pytest.raises(InputError, match=r"crop of 224 pixels.*images of 64.*--size 256"):
        cache_features(shards=small.shards, out=tmp_path / "out", backbone="resnet18", weights=str(path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b"\x80\x02cos\nsystem\n."])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_weights_that_are_none_are_refused_by_name(small: Small, tmp_path: Path, content: bytes, ending: str) -> None:
    path = tmp_path / f"evil.{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"evil\.{ending}: not a file of weights"):
        cache_features(shards=small.shards, out=tmp_path / "out", backbone="resnet18", weights=str(path))


def test_weights_of_another_network_list_the_keys(tmp_path: Path) -> None:
    save_file(random_state("alexnet", seed=0), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"(?s)do not fit resnet18.*Missing key"):
        open_backbone(
            backbone="resnet18",
            weights=str(tmp_path / "w.safetensors"),
            resize={"size": 256, "mode": "squash", "filter": "lanczos"},
            kept=tmp_path / KEPT_FILE,
            sample=lambda _: [],
        )


def test_without_network_the_error_names_the_other_choices(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    shard_small_at_224 = small.shards
    with pytest.raises((ResourceError, InputError), match=r"--weights PATH|--size 256"):
        cache_features(shards=shard_small_at_224, out=tmp_path / "out", backbone="resnet18", weights="IMAGENET1K_V1")
    with pytest.raises(ResourceError, match=r"IMAGENET1K_V1 of resnet18.*--weights PATH.*--weights random"):
        open_backbone(
            backbone="resnet18",
            weights="IMAGENET1K_V1",
            resize={"size": 256, "mode": "squash", "filter": "lanczos"},
            kept=tmp_path / KEPT_FILE,
            sample=lambda _: [],
        )


def test_a_network_that_gives_no_finite_number_names_the_image(small: Small) -> None:
    split = open_split(small.shards, "train")
    _, frozen = open_backbone(
        backbone="resnet18", weights="random", resize=split.config["resize"], kept=small.features / KEPT_FILE, sample=lambda _: []
    )
    assert frozen.whitening is not None
    frozen.whitening.matrix.fill_(float("nan"))
    with pytest.raises(DamageError, match="second"):
        half_features(frozen, torch.zeros(1, 56, 56, 3, dtype=torch.uint8), ["second"])
    assert backbone_state(frozen)["whitening.matrix"].isnan().all()


@pytest.mark.parametrize("after_parts", [1, 3])
def test_a_killed_pass_goes_on_to_the_same_bytes(small: Small, tmp_path: Path, after_parts: int) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.cache_features import cache_features\n"
        "cache_features(shards=Path(sys.argv[1]), out=Path(sys.argv[2]), splits=['train'], backbone='resnet18', weights='random', device='cpu')"
    )
    out = tmp_path / "features"
    command = [sys.executable, "-c", f"import torch; torch.set_num_threads(2)\n{code}", str(small.shards), str(out)]
    child = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(out.glob(".train.parts/0*.h5"))) < after_parts and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    subprocess.run(command, cwd=ROOT, check=True)
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(out / KEPT_FILE, whole / KEPT_FILE)
    subprocess.run([*command[:-1], str(whole)], cwd=ROOT, check=True)
    assert (out / "train.h5").read_bytes() == (whole / "train.h5").read_bytes()
    assert sorted(p.name for p in out.iterdir()) == ["backbone.safetensors", "train.h5"]
