"""Thumbnails of hostile shards; those of whole ones, and of folders, are tried with the report in test_report.py."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.images.decode import Resize
from pipeline.reporting.thumbnails import SIDE, RequestedImage, shard_thumbnails
from pipeline.sharding.read_samples import shard_samples
from pipeline.sharding.shard import ShardConfig, write_shards
from shards.dataset import open_split, read_dataset_file
from shards.json_files import write_json
from shards.layout import shard_path, sidecar_path
from shards.sidecar import split_digest
from shards.tar import write_tar


def shards_that_say(tmp_path: Path, mode: str, **fields: Any) -> Path:
    """A sound dataset of one image, 400 x 200 pixels, whose record says something else of it."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (400, 200), "red").save(tmp_path / "images" / "1.jpg")
    captions = {"images": [{"id": 7, "file_name": "1.jpg"}], "annotations": [{"id": 1, "image_id": 7, "caption": "red"}]}
    write_json(tmp_path / "captions.json", captions)
    folder = tmp_path / "shards"
    config = ShardConfig(resize=Resize(size=64, mode=mode))
    write_shards(images=tmp_path / "images", captions=tmp_path / "captions.json", out=folder, split="val", config=config, workers=1)
    (shard,) = open_split(folder, "val").shards
    records = [(sample.key, jpeg, record | fields) for sample, jpeg, record in shard_samples(shard)]
    samples, tar_bytes, tar_sha256 = write_tar(shard_path(folder, "val", 0), records)
    sidecar = replace(shard.sidecar, samples=samples, tar_bytes=tar_bytes, tar_sha256=tar_sha256)
    write_json(sidecar_path(shard.path), sidecar.content())
    dataset = read_dataset_file(folder)
    dataset.splits["val"]["digest"] = split_digest([sidecar])
    dataset.write(folder)
    return folder


@pytest.mark.parametrize("mode", ["squash", "pad"])
@pytest.mark.parametrize(
    ("width", "height"), [(10**400, 200), (400, 10**400), (10**10, 1), (-400, 200), (0, 0), ("400", 200), (None, None), (400.5, 200.0)], ids=range(8)
)
def test_a_record_of_impossible_size_costs_its_picture_no_more_than_its_shape(tmp_path: Path, mode: str, width: Any, height: Any) -> None:
    folder = shards_that_say(tmp_path, mode, width=width, height=height)
    (picture,) = shard_thumbnails(folder, "val", [RequestedImage(image_id=7, file_name="1.jpg")]).pictures
    assert isinstance(picture, bytes)
    with Image.open(io.BytesIO(picture)) as image:
        assert image.size == (SIDE, SIDE)  # the stored square's


@pytest.mark.parametrize("mode", ["squash", "pad"])
def test_a_very_long_photograph_has_a_picture_of_one_pixels_width(tmp_path: Path, mode: str) -> None:
    folder = shards_that_say(tmp_path, mode, width=1, height=100_000_000)
    (picture,) = shard_thumbnails(folder, "val", [RequestedImage(image_id=7, file_name="1.jpg")]).pictures
    assert isinstance(picture, bytes)
    with Image.open(io.BytesIO(picture)) as image:
        assert image.size == (1, SIDE)
