import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images.decode import Resize
from pipeline.reporting.thumbnails import SIDE, RequestedImage, folder_thumbnails, shard_thumbnails
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.read_samples import shard_samples
from pipeline.sharding.shard import write_shards
from shards.caption_table import table_of_split
from shards.dataset import open_split, read_dataset_file
from shards.errors import InputError
from shards.json_files import write_json
from shards.layout import shard_path, sidecar_path
from shards.sidecar import split_digest
from shards.tar import write_tar
from tests.conftest import Small


def shards_with_record(tmp_path: Path, mode: str, **fields: Any) -> Path:
    """An intact dataset of one image of 400 x 200 pixels, whose record has other ``fields``."""
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
def test_an_impossible_size_in_a_record_affects_only_the_shape(tmp_path: Path, mode: str, width: Any, height: Any) -> None:
    folder = shards_with_record(tmp_path, mode, width=width, height=height)
    (jpeg,) = shard_thumbnails(folder, "val", [RequestedImage(image_id=7, file_name="1.jpg")]).results
    assert isinstance(jpeg, bytes)
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.size == (SIDE, SIDE)  # that of the stored square


@pytest.mark.parametrize("mode", ["squash", "pad"])
def test_a_very_long_image_has_a_thumbnail_one_pixel_wide(tmp_path: Path, mode: str) -> None:
    folder = shards_with_record(tmp_path, mode, width=1, height=100_000_000)
    (jpeg,) = shard_thumbnails(folder, "val", [RequestedImage(image_id=7, file_name="1.jpg")]).results
    assert isinstance(jpeg, bytes)
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.size == (1, SIDE)


def test_thumbnails_of_images_are_small_upright_and_keep_their_shape(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (400, 100), "red").save(tmp_path / "wide.jpg")
    Image.new("RGB", (400, 100), "red").save(tmp_path / "turned.jpg", exif=turned)
    Image.new("L", (3, 2)).save(tmp_path / "tiny.png")
    wanted = [RequestedImage(image_id=n, file_name=name) for n, name in enumerate(("wide.jpg", "turned.jpg", "tiny.png"))]
    made = folder_thumbnails(tmp_path, wanted)
    (tmp_path / "out").mkdir()
    sizes = []
    for jpeg in made.results:
        assert isinstance(jpeg, bytes)
        (tmp_path / "out" / "picture.jpg").write_bytes(jpeg)
        with Image.open(tmp_path / "out" / "picture.jpg") as image:
            sizes.append(image.size)
    assert sizes == [(SIDE, SIDE // 4), (SIDE // 4, SIDE), (SIDE, SIDE * 2 // 3)]


@pytest.mark.parametrize("mode", ["squash", "pad", "shortest", "none"])
def test_thumbnails_of_shards_have_the_shape_of_the_originals(tmp_path: Path, mode: str) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (400, 200), "red").save(tmp_path / "images" / "1.jpg")
    captions = {"images": [{"id": 7, "file_name": "1.jpg"}], "annotations": [{"id": 1, "image_id": 7, "caption": "red"}]}
    write_json(tmp_path / "captions.json", captions)
    config = ShardConfig(resize=Resize(size=64, mode=mode))
    write_shards(images=tmp_path / "images", captions=tmp_path / "captions.json", out=tmp_path / "shards", split="val", config=config, workers=1)
    (jpeg,) = shard_thumbnails(tmp_path / "shards", "val", [RequestedImage(image_id=7, file_name="1.jpg")]).results
    assert isinstance(jpeg, bytes)
    (tmp_path / "picture.jpg").write_bytes(jpeg)
    with Image.open(tmp_path / "picture.jpg") as image:
        assert image.size == (SIDE, SIDE // 2)
        assert np.asarray(image).astype(int).min(axis=(0, 1))[0] > 200  # red to the edges: no padding


def test_a_damaged_sample_and_an_image_of_another_name_have_no_thumbnail(small: Small, tmp_path: Path) -> None:
    split = open_split(small.shards, "val")
    table = table_of_split(split)
    folder = tmp_path / "shards"
    folder.mkdir()
    for file in small.shards.iterdir():
        if not file.name.startswith("."):
            (folder / file.name).write_bytes(file.read_bytes())
    _, sample = split.sample(0)
    with (folder / "val-000000.tar").open("rb+") as tar:
        tar.seek(sample.jpg.offset + 100)
        tar.write(b"\0\1\2\3")
    wanted = [RequestedImage(image_id=int(i), file_name=name) for i, name in zip(table.image_ids, table.file_names, strict=True)]
    wanted[1] = replace(wanted[1], file_name="other.jpg")
    wanted[2] = replace(wanted[2], file_name="")  # a file of results has no names
    made = shard_thumbnails(folder, "val", wanted)
    assert made.results[:2] == ("damaged", "missing")
    assert all(isinstance(jpeg, bytes) for jpeg in made.results[2:])
    with pytest.raises(InputError, match="has none of the 1 images"):
        shard_thumbnails(folder, "val", [RequestedImage(image_id=-5, file_name="")])
