"""Shards of images that tables hold."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pytest

from pipeline.captions.read import CaptionSource
from pipeline.inspection.verify import verify
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.read_samples import shard_samples
from pipeline.sharding.shard import write_splits
from pipeline.sharding.splits import SplitSummary
from shards.dataset import open_split
from shards.errors import InputError, MismatchError, ResourceError
from shards.paths import Location
from tests import ROOT
from tests.conftest import SMALL
from tests.hub_server import HubServer
from tests.image_tables import image_rows, picture, write_table
from tests.servers import contents, s3_bucket, s3_server


def shard_tables(*captions: Location, out: Path, workers: int = 1, images: Path | None = None, **options: Any) -> dict[str, SplitSummary]:
    config = ShardConfig(resize=SMALL.resize, shard_size=4, **options)
    return write_splits(images=images, captions=CaptionSource(paths=captions), out=out, config=config, workers=workers)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Two files of a train split with small row groups, one of a validation split."""
    write_table(tmp_path / "data/train-00000-of-00002.parquet", image_rows(7), row_group_size=3)
    write_table(tmp_path / "data/train-00001-of-00002.parquet", image_rows(4, first=7), row_group_size=3)
    write_table(tmp_path / "data/validation-00000-of-00001.parquet", image_rows(2, first=11))
    return tmp_path / "data"


def test_shards_of_a_table_are_those_of_the_same_images_in_a_folder(tables: Path, tmp_path: Path) -> None:
    done = shard_tables(tables, out=tmp_path / "out")
    assert {name: (summary.images, summary.captions, summary.shards) for name, summary in done.items()} == {"train": (11, 22, 3), "val": (2, 4, 1)}
    assert all(report.intact for report in verify(tmp_path / "out", deep=True))
    rows = image_rows(11)
    for image in rows["image"]:
        (tmp_path / image["path"]).write_bytes(image["bytes"])
    lines = [json.dumps({"image": image["path"], "captions": captions}) for image, captions in zip(rows["image"], rows["caption"], strict=True)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    shard_tables(tmp_path / "c.jsonl", out=tmp_path / "from-files", images=tmp_path)
    for number in range(3):
        assert (tmp_path / f"out/train-{number:06d}.tar").read_bytes() == (tmp_path / f"from-files/train-{number:06d}.tar").read_bytes()


def test_the_bytes_of_a_tables_shards_do_not_depend_on_the_number_of_workers(tables: Path, tmp_path: Path) -> None:
    shard_tables(tables, out=tmp_path / "one")
    shard_tables(tables, out=tmp_path / "three", workers=3)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_a_second_run_over_a_table_keeps_its_shards_and_another_table_replaces_them(tables: Path, tmp_path: Path) -> None:
    shard_tables(tables, out=tmp_path / "out")
    (tmp_path / "out/train-000001.json").unlink()
    assert {name: (summary.kept, summary.shards) for name, summary in shard_tables(tables, out=tmp_path / "out").items()} == {
        "train": (2, 3),
        "val": (1, 1),
    }
    rows = image_rows(2, first=11)
    rows["image"][0]["bytes"] = picture(99, size=(50, 50))
    write_table(tables / "validation-00000-of-00001.parquet", rows)
    again = shard_tables(tables, out=tmp_path / "out")
    assert (again["train"].kept, again["val"].kept) == (3, 0)
    assert next(iter(shard_samples(open_split(tmp_path / "out", "val").shards[0])))[2]["width"] == 50
    assert shard_tables(tables, out=tmp_path / "out", check_sources=True)["val"].kept == 1


def test_images_of_a_table_that_cannot_be_used_have_a_line_in_the_rejects(tmp_path: Path) -> None:
    rows = image_rows(5)
    rows["image"][0]["bytes"] = None
    rows["image"][1]["bytes"] = b"<html>"
    rows["image"][2]["bytes"] = rows["image"][2]["bytes"][:200]
    write_table(tmp_path / "a.parquet", rows)
    (tmp_path / "more.csv").write_text("image,caption\nnowhere.jpg,more\n")
    done = shard_tables(tmp_path / "a.parquet", tmp_path / "more.csv", out=tmp_path / "out")["train"]
    assert (done.images, done.rejects) == (2, {"missing_file": 2, "not_an_image": 1, "truncated": 1})
    lines = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").read_text().splitlines()]
    assert {line["file"]: line["reason"] for line in lines} == {
        "0.jpg": "missing_file",
        "1.jpg": "not_an_image",
        "2.jpg": "truncated",
        "nowhere.jpg": "missing_file",
    }


def test_rows_of_another_order_than_the_tables_are_read(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", image_rows(6), row_group_size=2)
    (tmp_path / "first.csv").write_text("image,caption\n5.jpg,five\n0.jpg,zero\n3.jpg,three\n")
    assert shard_tables(tmp_path / "first.csv", tmp_path / "a.parquet", out=tmp_path / "out")["train"].images == 6
    names = [record["file_name"] for shard in open_split(tmp_path / "out", "train").shards for _, _, record in shard_samples(shard)]
    assert names == ["5.jpg", "0.jpg", "3.jpg", "1.jpg", "2.jpg", "4.jpg"]


def test_without_images_a_file_of_names_asks_for_them_and_with_images_a_table_is_read_for_names(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("image,caption\na.jpg,a\n")
    with pytest.raises(InputError, match=r"have the names of image files, such as a\.jpg, but not the images\. Give .* as `images`"):
        shard_tables(tmp_path / "c.csv", out=tmp_path / "out")
    write_table(tmp_path / "a.parquet", image_rows(1))
    (tmp_path / "0.jpg").write_bytes(picture(5, size=(64, 64)))
    shard_tables(tmp_path / "a.parquet", out=tmp_path / "out", images=tmp_path)
    assert next(iter(shard_samples(open_split(tmp_path / "out", "train").shards[0])))[2]["width"] == 64


def test_a_table_with_other_captions_is_another_split(tables: Path, tmp_path: Path) -> None:
    shard_tables(tables, out=tmp_path / "out")
    write_table(tables / "validation-00000-of-00001.parquet", image_rows(3, first=11))
    with pytest.raises(MismatchError, match="was made from other input"):
        shard_tables(tables, out=tmp_path / "out")


HUB_PROGRAM = """
import sys
from pathlib import Path
from pipeline.captions.read import CaptionSource
from pipeline.images.decode import Resize
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.shard import write_splits
from shards.errors import CapstreamError
for place in sys.argv[2:]:
    try:
        config = ShardConfig(resize=Resize(size=64), shard_size=4)
        done = write_splits(images=None, captions=CaptionSource(paths=(place,)), out=Path(sys.argv[1]), config=config)
        print({name: (summary.images, summary.kept) for name, summary in done.items()})
    except CapstreamError as error:
        print(type(error).__name__, error)
"""


def test_a_dataset_on_the_hub_is_read_by_its_address(tables: Path, tmp_path: Path) -> None:
    server = HubServer("me/flowers", tmp_path)
    # huggingface_hub reads the environment when it is imported
    environment = {**os.environ, "HF_ENDPOINT": server.origin, "NO_PROXY": "127.0.0.1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    places = ["hf://datasets/me/flowers", "hf://datasets/me/flowers/data/train-*.parquet", "hf://datasets/me/flowers/none", "hf://datasets/you/none"]
    command = [sys.executable, "-c", HUB_PROGRAM, str(tmp_path / "out"), *places]
    server.failing = 1
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    server.close()
    lines = done.stdout.splitlines()
    assert lines[:2] == ["{'train': (11, 0), 'val': (2, 0)}", "{'train': (11, 3)}"]
    assert lines[2].startswith("InputError hf://datasets/me/flowers/none: has no .parquet or .arrow file")
    assert lines[3].startswith("MissingFileError hf://datasets/you/none")
    shard_tables(tables, out=tmp_path / "local")
    assert contents(tmp_path / "out") == contents(tmp_path / "local")
    assert not any("None" in each for each in server.requests)  # ranges, and never whole files


def test_a_table_at_a_web_address_gives_the_same_shards(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = HubServer("me/flowers", tables)
    table = "validation-00000-of-00001.parquet"
    url = f"{server.origin}/datasets/me/flowers/resolve/main"
    shard_tables(f"{url}/{table}", out=tmp_path / "remote")
    with pytest.raises(InputError, match=r"none\.parquet: no such file\. Check"):
        shard_tables(f"{url}/none.parquet", out=tmp_path / "none")
    server.close()
    with pytest.raises(ResourceError, match=rf"{table}: cannot be read \(ClientConnectorError.*Check the network"):
        shard_tables(f"{url}/{table}", out=tmp_path / "none")
    shard_tables(tables / table, out=tmp_path / "local")
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")


def test_tables_in_s3_give_the_same_shards(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_tables(tables, out=tmp_path / "local")
    datasets.Dataset.from_parquet(str(tables / "train-*.parquet")).save_to_disk(str(tmp_path / "arrow"))
    (arrow,) = (tmp_path / "arrow").glob("*.arrow")
    with s3_server() as server, s3_bucket(server, monkeypatch) as (url, client):
        for path in [*tables.iterdir(), arrow]:
            client.upload_file(str(path), url.removeprefix("s3://"), f"{path.parent.name}/{path.name}")
        shard_tables(f"{url}/data/*.parquet", out=tmp_path / "remote")
        shard_tables(f"{url}/arrow", out=tmp_path / "from-arrow")
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    tars = [f"train-{number:06d}.tar" for number in range(3)]
    assert [(tmp_path / "from-arrow" / tar).read_bytes() for tar in tars] == [(tmp_path / "local" / tar).read_bytes() for tar in tars]
