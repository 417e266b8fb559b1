import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image

from pipeline.captions.formats import described_formats
from pipeline.captions.read import CaptionSource, read_captions, read_splits
from pipeline.captions.records import CaptionFile
from shards.dataset import open_split, read_dataset_file
from shards.errors import InputError
from shards.tar import read_records

COCO = {"images": [{"id": 7, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 7, "caption": "A"}]}
KARPATHY = {"images": [{"filename": "a.jpg", "imgid": 0, "split": "val", "sentences": [{"raw": "A"}]}]}


def source(*paths: Path, **more: Any) -> CaptionSource:
    return CaptionSource(paths=paths, **more)


def names(found: CaptionFile) -> dict[str | None, list[str]]:
    return {split: [record.file_name for record in records] for split, records in found.splits.items()}


@pytest.mark.parametrize(
    ("content", "split"),
    [
        (json.dumps(COCO), None),
        (json.dumps(COCO, indent=1), None),
        ("\ufeff\n " + json.dumps(COCO), None),
        (json.dumps(KARPATHY), "val"),
        (json.dumps({"dataset": "x", **KARPATHY}, indent=4), "val"),
        ("a.jpg#0\tA\n", None),
        ("image,caption\na.jpg,A\n", None),
        ("image\tcaption\tsplit\na.jpg\tA\ttest\n", "test"),
        ('{"image": "a.jpg", "caption": "A"}\n{"image": "a.jpg", "caption": "B"}', None),
        ('{"image": "a.jpg", "caption": "A"}', None),
        ('[{"image": "a.jpg", "caption": "A"}]', None),
    ],
)
def test_a_format_is_recognised_by_its_content_whatever_the_file_is_called(tmp_path: Path, content: str, split: str | None) -> None:
    path = tmp_path / "anything.bin"
    path.write_text(content)
    found = read_captions(source(path))
    assert names(found) == {split: ["a.jpg"]}
    assert found.splits[split][0].captions[0].text == "A"
    assert [image.file_name for image in found.listed] == ["a.jpg"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is not text"),
        (b'{"info": {}}', "no column of images, or none of captions"),
        (b'{"info":\n {}}', "begins with '{\"info\":'"),
        (b"A dog runs.\nA cat, too.\n", "begins with 'A dog runs.'"),
        (b"url,alt\nx,y\n", r"a table of 2 columns, none of which has a usual name: url, alt\. .*`column` image=NAME and `column` caption=NAME"),
    ],
)
def test_content_of_no_known_format_is_an_error_that_names_the_file_and_the_formats(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"captions\.json: {says}") as error:
        read_captions(source(path))
    assert described_formats() in str(error.value) or "a table of" in says


@pytest.mark.parametrize(
    ("content", "says"), [("image,caption".encode("utf-16"), "is UTF-16"), (gzip.compress(b"image,caption", mtime=0), "is compressed")]
)
def test_a_file_that_is_not_utf_8_text_says_how_to_convert_it(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "c.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"c\.csv: {says}"):
        read_captions(source(tmp_path / "c.csv"))


def test_json_in_another_encoding_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(json.dumps(COCO, indent=1).replace('"A"', '"é"').encode("latin-1"))
    with pytest.raises(InputError, match=r"c\.json: not a captions file: line 12 is not UTF-8"):
        read_captions(source(path))
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_captions(source(tmp_path / "none.json"))


def test_split_lists_assign_images_with_or_without_their_extension(tmp_path: Path) -> None:
    tokens = tmp_path / "f.token"
    tokens.write_text("".join(f"{name}#0\tText\n" for name in ("1.jpg", "2.jpg", "3.jpg", "4.jpg")) + "2.jpg#1\t \n")
    (tmp_path / "train").write_text("1.jpg\n3\n")
    (tmp_path / "dev").write_text("2.jpg\nlost.jpg\n")
    lists = (("train", tmp_path / "train"), ("val", tmp_path / "dev"))
    found = read_captions(source(tokens, split_lists=lists))
    assert names(found) == {"train": ["1.jpg", "3.jpg"], "val": ["2.jpg"]}
    rejects = {split: [(reject.file, reject.reason) for reject in each] for split, each in found.rejects.items()}
    assert rejects == {"val": [("2.jpg", "empty_caption"), ("lost.jpg", "no_captions")], None: [("4.jpg", "in_no_split")]}
    # Rejects in no split are reported with the first one
    assert [reject.file for reject in read_splits(source(tokens, split_lists=lists))["train"].rejects] == ["4.jpg"]
    (tmp_path / "dev").write_text("1.jpg\n")
    with pytest.raises(InputError, match=r"dev: 1\.jpg is in split train by an earlier `split_list`"):
        read_captions(source(tokens, split_lists=lists))
    (tmp_path / "k.json").write_text(json.dumps(KARPATHY))
    with pytest.raises(InputError, match=r"k\.json: names its splits itself \(val\): omit `split_list`"):
        read_captions(source(tmp_path / "k.json", split_lists=lists))


def test_split_names_the_only_split_or_selects_a_named_one(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(COCO))
    assert list(read_splits(source(tmp_path / "c.json"))) == ["train"]
    assert list(read_splits(source(tmp_path / "c.json"), "val")) == ["val"]
    (tmp_path / "k.json").write_text(json.dumps(KARPATHY))
    assert list(read_splits(source(tmp_path / "k.json"))) == ["val"]
    with pytest.raises(InputError, match=r"k\.json: there is no split 'train'\. Choose another `split` of val"):
        read_splits(source(tmp_path / "k.json"), "train")


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(8):
        Image.new("RGB", (20, 20), (number * 30, 0, 0)).save(tmp_path / "images" / f"{number}.jpg")
    return tmp_path / "images"


def shard(run_cli: Callable[..., Result], images: Path, *more: object) -> Result:
    return run_cli("shard", "--images", images, "--out", images.parent / "out", "--size", 16, "--workers", 1, "--shard-size", 2, *more)


def there(folder: Path) -> dict[str, list[str]]:
    """The file names in the tars, by split."""
    splits = read_dataset_file(folder).splits
    return {split: [record["file_name"] for each in open_split(folder, split).shards for _, record in read_records(each)] for split in splits}


def test_one_run_of_shard_writes_every_split_of_a_karpathy_file(image_folder: Path, run_cli: Callable[..., Result]) -> None:
    splits = ["train", "val", "restval", "test", "train", "val", "restval", "train"]
    images = [{"filename": f"{i}.jpg", "imgid": i, "split": split, "sentences": [{"raw": f"Text {i}"}]} for i, split in enumerate(splits)]
    images.append({"filename": "gone.jpg", "imgid": 8, "split": "val", "sentences": [{"raw": "Gone"}]})
    captions = image_folder.parent / "dataset.json"
    captions.write_text(json.dumps({"dataset": "tiny", "images": images}))
    result = shard(run_cli, image_folder, "--captions", captions)
    assert result.exit_code == 0, result.output
    wanted = {"test": ["3.jpg"], "train": ["0.jpg", "2.jpg", "4.jpg", "6.jpg", "7.jpg"], "val": ["1.jpg", "5.jpg"]}
    assert there(image_folder.parent / "out") == wanted
    assert re.findall(r"^\S+: split (\w+): ", result.output, flags=re.MULTILINE) == ["train", "val", "test"]
    assert "Left out: 1 missing_file." in result.output
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (image_folder.parent / "out").iterdir()}
    again = shard(run_cli, image_folder, "--captions", captions)
    assert again.output.count("nothing written") == 3
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (image_folder.parent / "out").iterdir()} == before
    # A split written alone has the same bytes
    alone = run_cli(
        "shard",
        "--images",
        image_folder,
        "--out",
        image_folder.parent / "alone",
        "--size",
        16,
        "--shard-size",
        2,
        "--captions",
        captions,
        "--split",
        "val",
    )
    assert alone.exit_code == 0, alone.output
    assert (image_folder.parent / "alone/val-000000.tar").read_bytes() == (image_folder.parent / "out/val-000000.tar").read_bytes()
    apart = run_cli("shard", "--images", image_folder, "--out", image_folder.parent / "apart", "--size", 16, "--captions", captions, "--no-restval")
    assert apart.exit_code == 0, apart.output
    assert there(image_folder.parent / "apart")["restval"] == ["2.jpg", "6.jpg"]


def test_flickrs_token_file_and_lists_become_three_splits(image_folder: Path, run_cli: Callable[..., Result]) -> None:
    base = image_folder.parent
    (base / "Flickr8k.token.txt").write_text("".join(f"{i}.jpg#{k}\tCaption {k} of {i} .\n" for i in range(8) for k in range(5)))
    lists: list[object] = []
    for split, name, numbers in (("train", "trainImages", (0, 1, 2, 3)), ("val", "devImages", (4, 5)), ("test", "testImages", (6, 7))):
        (base / f"Flickr_8k.{name}.txt").write_text("".join(f"{number}.jpg\n" for number in numbers))
        lists += ["--split-list", f"{split}={base}/Flickr_8k.{name}.txt"]
    result = shard(run_cli, image_folder, "--captions", base / "Flickr8k.token.txt", *lists)
    assert result.exit_code == 0, result.output
    found = there(base / "out")
    assert (found["train"], found["val"], found["test"]) == ([f"{i}.jpg" for i in range(4)], ["4.jpg", "5.jpg"], ["6.jpg", "7.jpg"])
    assert read_dataset_file(base / "out").splits["train"]["captions"] == 20


def test_captions_of_several_formats_are_merged(image_folder: Path, run_cli: Callable[..., Result]) -> None:
    base = image_folder.parent
    (base / "a.json").write_text(json.dumps({**COCO, "images": [{"id": 7, "file_name": "1.jpg"}]}))
    (base / "b.csv").write_text("image,caption\n1.jpg,More\n2.jpg,Other\n")
    (image_folder / "3.txt").write_text("From the folder\n")
    result = shard(run_cli, image_folder, "--captions", base / "a.json", "--captions", base / "b.csv", "--captions", image_folder, "--split", "mine")
    assert result.exit_code == 0, result.output
    records = [record for each in open_split(base / "out", "mine").shards for _, record in read_records(each)]
    found = [(r["image_id"], r["file_name"], [(c["id"], c["text"]) for c in r["captions"]]) for r in records]
    assert found == [(7, "1.jpg", [(1, "A"), (0, "More")]), (1, "2.jpg", [(2, "Other")]), (3, "3.jpg", [(3, "From the folder")])]


def test_a_split_without_a_usable_image_is_reported_after_the_others_are_written(image_folder: Path, run_cli: Callable[..., Result]) -> None:
    captions = image_folder.parent / "c.csv"
    captions.write_text("image,caption,split\ngone.jpg,A,train\n1.jpg,B,val\n")
    result = shard(run_cli, image_folder, "--captions", captions)
    assert result.exit_code == 1
    assert "no image of split 'train' could be used (1 missing_file)" in result.output
    assert there(image_folder.parent / "out") == {"val": ["1.jpg"]}


@pytest.mark.parametrize(
    ("option", "says"),
    [(["--split-list", "train"], "must have the form NAME=VALUE"), (["--column", "url=x"], "unknown role. Choose one of")],
)
def test_malformed_options_are_usage_errors(image_folder: Path, run_cli: Callable[..., Result], option: list[str], says: str) -> None:
    result = shard(run_cli, image_folder, "--captions", image_folder, *option)
    assert result.exit_code == 2
    assert says in result.output
