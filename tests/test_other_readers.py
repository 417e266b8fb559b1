"""The tars as others read them: plain webdataset, Hugging Face datasets, a torch Dataset. Each finds what the sidecars list."""

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from pipeline.datasets.synthetic import synthesize
from pipeline.sharding.shard import write_shards
from shards.dataset import Split, open_split
from shards.tar import read_member
from tests.conftest import SMALL

Found = dict[str, tuple[NDArray[np.uint8], list[str]]]


def listed(split: Split) -> Found:
    """By key, pixels and captions of a split, read at the offsets that its sidecars list."""
    found = {}
    for shard in split.shards:
        with shard.open() as file:
            for sample in shard.sidecar.samples:
                image = Image.open(io.BytesIO(read_member(file, shard, sample.key, "jpg", sample.jpg)))
                record = json.loads(read_member(file, shard, sample.key, "json", sample.json))
                assert len(record["captions"]) == sample.captions
                found[sample.key] = (np.asarray(image), [caption["text"] for caption in record["captions"]])
    return found


def same(found: Found, wanted: Found) -> bool:
    return list(found) == list(wanted) and all(np.array_equal(found[key][0], wanted[key][0]) and found[key][1] == wanted[key][1] for key in wanted)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 drawings in train, 10 a shard, and 2 in val; the second shard of val holds no sample, because its photograph is missing."""
    base = tmp_path_factory.mktemp("readers")
    synthesize(base / "drawn", images=23, seed=3)
    content = json.loads((base / "drawn/captions_val.json").read_text())
    images = [{"id": 900 + number, "file_name": name} for number, name in enumerate(["scene_000009.jpg", "missing.jpg", "scene_000019.jpg"])]
    annotations = [{"id": number, "image_id": 900 + number, "caption": text} for number, text in enumerate(["Ελλάδα 🐕", "None.", 'A "b"\nc'])]
    assert {image["file_name"] for image in content["images"]} == {"scene_000009.jpg", "scene_000019.jpg"}
    (base / "drawn/captions_val.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    for split, size in (("train", 10), ("val", 1)):
        captions = base / "drawn" / f"captions_{split}.json"
        write_shards(images=base / "drawn/images", captions=captions, out=base / "shards", split=split, config=replace(SMALL, shard_size=size))
    return base / "shards"


def test_plain_webdataset_finds_every_image_and_caption(shards: Path) -> None:
    split = open_split(shards, "train")
    urls = [str(shard.path) for shard in split.shards]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("__key__", "jpg", "json")
    found = {key: (np.asarray(image), [caption["text"] for caption in record["captions"]]) for key, image, record in samples}
    assert len(found) == split.images == 21
    assert same(found, listed(split))


def test_hugging_face_datasets_finds_every_image_and_record(shards: Path, tmp_path: Path) -> None:
    """In a process of its own that must not ask the network; loaded whole and streaming."""
    code = """
import json, sys
import numpy as np
from datasets import load_dataset
shards, cache = sys.argv[1:]
files = {split: f"{shards}/{split}-*.tar" for split in ("train", "val")}
rows = []
for streaming in (False, True):
    for split, dataset in load_dataset("webdataset", data_files=files, cache_dir=cache, streaming=streaming).items():
        rows += [{"of": [streaming, split], "key": r["__key__"], "pixels": np.asarray(r["jpg"]).tolist(), "record": r["json"]} for r in dataset]
json.dump(rows, sys.stdout)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    arguments = [sys.executable, "-c", code, str(shards), str(tmp_path / "cache")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)
    for streaming in (False, True):
        for name, images in (("train", 21), ("val", 2)):
            of_split = [row for row in rows if row["of"] == [streaming, name]]
            texts = [[caption["text"] for caption in row["record"]["captions"]] for row in of_split]
            found = {row["key"]: (np.array(row["pixels"], np.uint8), text) for row, text in zip(of_split, texts, strict=True)}
            assert len(of_split) == open_split(shards, name).images == images
            assert same(found, listed(open_split(shards, name)))
            assert set(of_split[0]["record"]) == {"image_id", "file_name", "width", "height", "captions"}
            assert set(of_split[0]["record"]["captions"][0]) == {"id", "text", "tokens"}


class TarImages(Dataset[tuple[torch.Tensor, str]]):
    """A map-style dataset over one tar, as a tutorial would write it: the standard library's reader, and torchvision's layout of pixels."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with tarfile.open(path) as tar:
            self.names = [name.removesuffix(".jpg") for name in tar.getnames() if name.endswith(".jpg")]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        with tarfile.open(self.path) as tar:
            image, record = (tar.extractfile(f"{self.names[index]}.{ending}") for ending in ("jpg", "json"))
            assert image is not None
            assert record is not None
            pixels = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)
            return pixels, json.load(record)["captions"][0]["text"]


def test_a_torch_dataset_over_a_tar_gives_batches_of_the_same_images_and_captions(shards: Path) -> None:
    wanted = list(listed(open_split(shards, "train")).values())[10:20]
    pixels, texts = zip(*DataLoader(TarImages(shards / "train-000001.tar"), batch_size=4), strict=True)
    assert [len(batch) for batch in pixels] == [4, 4, 2]
    found = torch.cat(pixels).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found, np.stack([image for image, _ in wanted]))
    assert [text for batch in texts for text in batch] == [captions[0] for _, captions in wanted]
