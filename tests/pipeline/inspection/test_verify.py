"""Every kind of damage is found and named, and training never loses a sample silently."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from model.preprocessing import Preprocessing
from model.vocabulary import build_vocabulary
from pipeline.inspection.verify import verify
from pipeline.loading.batches import CaptionBatch, EncodedCaptions, training_batches
from pipeline.loading.sources import ShardSource
from shards.caption_table import table_of_split
from shards.dataset import open_split
from shards.digests import json_digest
from shards.errors import DamageError, MismatchError, OnError
from shards.features import open_features
from shards.sidecar import Sample, read_sidecar
from shards.tar import open_readable_split
from tests.caching import cache_features
from tests.conftest import TINY_MODEL, Small, shard_small
from tests.pipeline.short_runs import train_on_cpu

TAR = "train-000001.tar"
BLOCK = 512
PREPROCESSING = Preprocessing(size=64, mode="squash", filter="lanczos", crop=56, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def shards(small: Small, tmp_path: Path) -> Path:
    shutil.copytree(small.shards, tmp_path / "shards")
    return tmp_path / "shards"


def problems(folder: Path, *, deep: bool = False) -> list[str]:
    found: list[str] = []
    for report in verify(folder, deep=deep):
        found += report.problems
        found += [f"{shard.tar.name}: {problem}" for shard in report.shards for problem in shard.problems]
    return found


def batches(folder: Path, on_error: OnError = "fail") -> list[CaptionBatch]:
    """The batches of an epoch of raw training."""
    split = open_readable_split(folder, "train", on_error)
    table = table_of_split(split)
    encoded = EncodedCaptions(table, build_vocabulary(dict.fromkeys(table.words, 1), min_count=1))
    return list(training_batches(ShardSource(split, table, PREPROCESSING, "tutorial"), encoded, seed=0, epoch=0, batch_size=64))


def same(first: list[CaptionBatch], second: list[CaptionBatch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a.images, b.images) and torch.equal(a.tokens, b.tokens) for a, b in pairs)


def end(sample: Sample) -> int:
    return max(sample.jpg.offset + sample.jpg.size, sample.json.offset + sample.json.size)


def test_an_intact_dataset_has_no_problems(small: Small) -> None:
    reports = verify(small.shards, deep=True, workers=2)
    assert [(report.name, len(report.shards), report.intact) for report in reports] == [("train", 4, True), ("val", 1, True)]
    assert [shard.images for shard in reports[0].shards] == [10, 10, 10, 6]


def test_a_tar_truncated_at_any_block_is_found_and_training_on_it_names_shard_and_sample(shards: Path) -> None:
    tar = shards / TAR
    content, samples = tar.read_bytes(), read_sidecar(tar.with_suffix(".json")).samples
    assert len(content) % BLOCK == 0
    for size in range(0, len(content), BLOCK):
        tar.write_bytes(content[:size])
        assert any(TAR in problem and f"has {size} bytes" in problem for problem in problems(shards))
        lost = [sample.key for sample in samples if end(sample) > size]
        names = f"{TAR}.*Sample {lost[0]} and all after it \\({len(lost)} samples\\)" if lost else TAR
        with pytest.raises(DamageError, match=names):
            batches(shards)
        assert [shard.skipped for shard in open_readable_split(shards, "train", "skip").shards] == [(), tuple(lost), (), ()]
    tar.unlink()
    assert any("is missing" in problem for problem in problems(shards))
    assert len(open_readable_split(shards, "train", "skip").shards[1].skipped) == 10


def test_a_flipped_bit_is_found_and_training_names_it_or_sees_the_same_pixels(shards: Path) -> None:
    whole = batches(shards)
    tar = shards / TAR
    content, samples = tar.read_bytes(), read_sidecar(tar.with_suffix(".json")).samples
    random = np.random.default_rng(3)
    harmless = 0
    for place, bit in zip(random.integers(len(content), size=200), random.integers(8, size=200), strict=True):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        tar.write_bytes(bytes(flipped))
        assert any(TAR in problem for problem in problems(shards))
        hit = [s.key for s in samples for m in (s.jpg, s.json) if m.offset <= place < m.offset + m.size]
        assert [shard.skipped for shard in open_readable_split(shards, "train", "skip").shards] == [(), tuple(hit), (), ()]
        if hit:
            with pytest.raises(DamageError, match=f"{TAR}: sample {hit[0]}"):
                batches(shards)
        else:
            harmless += 1
            if harmless <= 5:  # a header or padding: training reads members at their offsets
                assert same(batches(shards), whole)
    assert 50 <= harmless <= 150  # both kinds were there


@pytest.mark.parametrize("name", ["train-000002.json", "dataset.json"])
def test_a_flipped_bit_in_a_sidecar_or_in_the_dataset_file_is_found(shards: Path, name: str) -> None:
    path = shards / name
    content = path.read_bytes()
    random = np.random.default_rng(4)
    for place, bit in zip(random.integers(len(content), size=100), random.integers(8, size=100), strict=True):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        path.write_bytes(bytes(flipped))
        try:
            unchanged = json.loads(bytes(flipped)) == json.loads(content)  # white space
        except ValueError:
            unchanged = False
        if not unchanged:
            try:
                found = problems(shards)
            except (DamageError, MismatchError) as error:
                found = [str(error)]
            assert any(name in problem for problem in found), (place, bit)


def test_problems_beyond_a_single_tar_are_found(small: Small, shards: Path, tmp_path: Path) -> None:
    shutil.copy(shards / "train-000000.tar", shards / "train-000004.tar")
    assert any("train-000004.tar does not belong to a shard" in problem for problem in problems(shards))
    (shards / "train-000004.tar").unlink()

    with (shards / "rejects.jsonl").open("ab") as file:
        file.write(b"{}\n")
    assert problems(shards) == []  # a line too many is no loss
    shard_small(small.source, tmp_path / "other", "train", shard_size=20)
    for ending in ("tar", "json"):
        shutil.copy(tmp_path / "other" / f"train-000001.{ending}", shards / f"train-000001.{ending}")
    assert any("but dataset.json lists" in problem for problem in problems(shards))
    for ending in ("tar", "json"):
        shutil.copy(shards / f"train-000000.{ending}", shards / f"train-000001.{ending}")
    assert any("its sidecar belongs to train-000000" in problem for problem in problems(shards))


@pytest.mark.parametrize(
    "resize", [None, [], {}, {"size": 64}, {"size": "64", "mode": "squash", "filter": "lanczos"}, {"size": 64, "mode": 1, "filter": ""}]
)
def test_an_untrusted_dataset_file_with_a_valid_digest_and_an_impossible_config_is_damaged(shards: Path, resize: object) -> None:
    raw = json.loads((shards / "dataset.json").read_text())
    raw["config"]["resize"] = resize
    del raw["self_digest"]
    (shards / "dataset.json").write_text(json.dumps({**raw, "self_digest": json_digest(raw)}))
    with pytest.raises(DamageError, match=r"dataset\.json"):
        verify(shards, deep=True)


def test_deep_decodes_every_image(shards: Path) -> None:
    """A shard with a broken JPEG and matching checksums, which only a decoder detects."""
    tar, sidecar_file = shards / "val-000000.tar", shards / "val-000000.json"
    sidecar = read_sidecar(sidecar_file)
    member = sidecar.samples[1].jpg
    content = bytearray(tar.read_bytes())
    content[member.offset + member.size // 2 : member.offset + member.size] = bytes(member.size - member.size // 2)
    tar.write_bytes(bytes(content))
    raw = json.loads(sidecar_file.read_text())
    raw["tar_sha256"] = hashlib.sha256(content).hexdigest()
    raw["samples"][1][4] = zlib.crc32(content[member.offset : member.offset + member.size])
    del raw["self_digest"]
    sidecar_file.write_text(json.dumps({**raw, "self_digest": json_digest(raw)}))
    assert not any("sample 000000001" in problem for problem in problems(shards))
    assert any("sample 000000001.jpg" in problem for problem in problems(shards, deep=True))


def test_the_command_names_each_damaged_shard_and_what_to_do(shards: Path, run_cli: Callable[..., Result]) -> None:
    assert run_cli("verify", shards, "--workers", 1).exit_code == 0
    (shards / TAR).write_bytes((shards / TAR).read_bytes()[:-1])
    (shards / "val-000000.json").unlink()
    result = run_cli("verify", shards, "--deep", "--workers", 1)
    assert result.exit_code == 1
    assert TAR in result.output
    assert "val-000000" in result.output
    assert "train-000000.tar" not in result.output
    assert "Run the shard command of that split again" in " ".join(result.output.split())


def test_feature_files_are_verified_alone_and_in_a_folder(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    folder = tmp_path / "features"
    shutil.copytree(small.features, folder)
    result = run_cli("verify", folder)
    assert result.exit_code == 0
    assert "train.h5: intact: 36 images, 180 captions, 1 view(s) of 512 features (resnet18, random, fp32)" in result.output
    assert "val.h5: intact: 4 images" in result.output
    assert run_cli("verify", folder / "val.h5").exit_code == 0

    file = open_features(folder / "train.h5")
    place = file.features.offset + 700  # type: ignore[attr-defined]
    content = bytearray((folder / "train.h5").read_bytes())
    content[place] ^= 2
    (folder / "train.h5").write_bytes(bytes(content))
    result = run_cli("verify", folder)
    assert result.exit_code == 1
    output = " ".join(result.output.split())
    assert "/features: block 0 of 1 does not have its CRC-32" in output
    assert f"Delete it and run again: python cli.py cache-features --out {folder}" in output
    assert "val.h5: intact" in output
    assert run_cli("verify", folder / "val.h5").exit_code == 0
    (folder / "val.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert run_cli("verify", folder / "val.h5").exit_code == 1


def test_skipping_trains_on_the_intact_samples_and_reports_the_count(shards: Path, tmp_path: Path) -> None:
    tar = shards / TAR
    sidecar = read_sidecar(tar.with_suffix(".json"))
    content = bytearray(tar.read_bytes())
    content[sidecar.samples[3].jpg.offset + 40] ^= 1
    tar.write_bytes(bytes(content))

    raw: dict[str, Any] = {"shards": shards, "backbone": "resnet18", "weights": "random", "max_steps": 2}
    with pytest.raises(DamageError, match=f"{TAR}: sample 000000013"):
        train_on_cpu(out=tmp_path / "fail", settings=TINY_MODEL, **raw)
    summary = train_on_cpu(out=tmp_path / "skip", settings={**TINY_MODEL, "on_error": "skip"}, **raw)
    assert summary.steps == 2
    assert any(f"skipped 1 damaged samples of split 'train' ({TAR} 000000013)" in note for note in summary.notes)
    assert sum(len(batch.captions) for batch in batches(shards, "skip")) == 180 - sidecar.samples[3].captions

    with pytest.raises(DamageError, match="sample 000000013"):
        cache_features(shards=shards, out=tmp_path / "features", backbone="resnet18", weights="random", device="cpu", splits=["train"])
    cached = cache_features(
        shards=shards, out=tmp_path / "features", backbone="resnet18", weights="random", device="cpu", splits=["train"], on_error="skip"
    )
    assert cached[0].images == 35
    assert any("000000013" in note for note in cached[0].notes)
    file = open_features(tmp_path / "features" / "train.h5")
    assert "000000013" not in file.table.keys
    assert file.provenance.split_digest != open_split(shards, "train").digest
