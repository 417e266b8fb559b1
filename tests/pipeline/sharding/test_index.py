import functools
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from pipeline.captions.english import tokenize
from pipeline.datasets.synthetic import synthesize
from pipeline.images.decode import Resize, decode_image
from pipeline.inspection.verify import verify
from pipeline.sharding import tar_members
from pipeline.sharding.index import index_tars
from pipeline.sharding.read_samples import read_samples, shard_samples
from shards.caption_table import table_of_split
from shards.dataset import Split, open_split, read_dataset_file
from shards.errors import DamageError, InputError, MismatchError, OccupiedError
from shards.json_files import write_json
from shards.layout import records_path, sidecar_path
from shards.remote import localize
from shards.sidecar import key_number, read_sidecar
from shards.tar import open_readable_split
from tests import img2dataset

Run = Callable[..., Result]
SHORTEST = Resize(size=64, mode="shortest")


@pytest.fixture(scope="session")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 drawings as img2dataset downloads them, 10 per tar, and two that it cannot download: ``jpg`` with keep_ratio, ``png`` with border."""
    base = tmp_path_factory.mktemp("img2dataset")
    synthesize(base / "drawn", images=20, seed=5)
    content = json.loads((base / "drawn/captions_train.json").read_text())
    captions = {annotation["image_id"]: annotation["caption"] for annotation in content["annotations"]}
    rows = [(image["file_name"], f"{captions[image['id']]} Né {image['id']}.") for image in content["images"]]
    rows[3:3] = [("missing.jpg", "Not there."), ("page.html", "No image.")]
    (base / "drawn/images/page.html").write_text("<html>")
    common = ["--image_size", "64", "--number_sample_per_shard", "10"]
    img2dataset.download(
        base / "drawn/images",
        rows,
        [
            [*common, "--output_folder", str(base / "jpg"), "--resize_mode", "keep_ratio"],
            [*common, "--output_folder", str(base / "png"), "--resize_mode", "border", "--encode_format", "png", "--encode_quality", "6"],
        ],
    )
    return base


@pytest.fixture
def jpg(downloads: Path, tmp_path: Path) -> Path:
    return shutil.copytree(downloads / "jpg", tmp_path / "jpg")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def in_tars(folder: Path) -> dict[str, dict[str, Any]]:
    """The members of each sample as the standard library reads them, by key."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[ending] = file.read()
    return found


@pytest.mark.parametrize(("ending", "mode"), [("jpg", "shortest"), ("png", "pad")])
def test_img2datasets_tars_become_shards_and_stay_as_they_are(downloads: Path, tmp_path: Path, ending: str, mode: str) -> None:
    folder = shutil.copytree(downloads / ending, tmp_path / "x")
    before, inside = contents(folder), in_tars(folder)
    summary = index_tars(folder, resize=Resize(size=64, mode=mode))
    assert (summary.shards, summary.kept, summary.images, summary.captions, summary.rejects) == (2, 0, 18, 18, {})
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {*(f"0000{i}.{e}" for i in (0, 1) for e in ("json", "records")), "dataset.json", "rejects.jsonl"}
    split = open_split(folder, "train")
    assert [sample.key for shard in split.shards for sample in shard.sidecar.samples] == list(inside)
    for shard in split.shards:
        for sample, image, record in read_samples(shard, shard.sidecar.samples):
            there = inside[sample.key]
            facts = json.loads(there["json"])
            assert image == there[ending]
            assert record["image_id"] == int(sample.key)
            assert (record["width"], record["height"]) == (facts["original_width"], facts["original_height"])
            text = there["txt"].decode()
            assert text == facts["caption"]
            assert record["captions"] == [{"id": int(sample.key), "text": text, "tokens": tokenize(text)}]
        assert [image for _, image, _ in shard_samples(shard)] == [inside[sample.key][ending] for sample in shard.sidecar.samples]
    (report,) = verify(folder, deep=True)
    assert (report.intact, len(report.shards)) == (True, 2)


def test_indexed_tars_pass_through_all_commands(jpg: Path, run_cli: Run, tmp_path: Path) -> None:
    steps: list[list[object]] = [
        ["index", jpg, "--size", 64, "--resize", "shortest", "--split", "val", "--tars", "00001.tar", "--workers", 1],
        ["index", jpg, "--size", 64, "--resize", "shortest", "--workers", 1],
        ["verify", jpg, "--deep", "--workers", 1],
        ["vocab", "--shards", jpg, "--min-count", 1, "--out", tmp_path / "v.json"],
        ["cache-features", "--shards", jpg, "--out", tmp_path / "f", "--backbone", "squeezenet1_1", "--weights", "random", "--precision", "fp32"],
        [*f"train --shards {jpg} --out {tmp_path}/r --backbone squeezenet1_1 --weights random --precision fp32 --epochs 1 --min-count 1".split()],
        ["evaluate", "--run", tmp_path / "r", "--shards", jpg, "--no-java"],
    ]
    for step in steps:
        result = run_cli(*step)
        assert result.exit_code == 0, result.output
        assert "Next: " in result.output.splitlines()[-1]
    splits = read_dataset_file(jpg).splits
    assert {name: (entry["tars"], entry["images"]) for name, entry in splits.items()} == {"train": (["00000.tar"], 8), "val": (["00001.tar"], 10)}


def test_a_second_run_writes_nothing_and_a_changed_tar_is_indexed_again(jpg: Path) -> None:
    index_tars(jpg, resize=SHORTEST)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in jpg.iterdir()}
    assert index_tars(jpg, resize=SHORTEST, workers=2).kept == 2
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in jpg.iterdir()} == before
    records_path(jpg / "00000.tar").unlink()
    assert index_tars(jpg, resize=SHORTEST).kept == 1
    assert contents(jpg) == {path.name: content for path, (content, _) in before.items()}
    shutil.copy(jpg / "00001.tar", jpg / "00000.tar")
    (jpg / "00001.tar").unlink()
    assert index_tars(jpg, resize=SHORTEST).kept == 0
    assert read_dataset_file(jpg).splits["train"]["tars"] == ["00000.tar"]


def test_damage_in_a_tar_or_its_records_is_reported_with_the_repair_command(jpg: Path) -> None:
    index_tars(jpg, resize=SHORTEST)
    records = records_path(jpg / "00000.tar")
    good = records.read_bytes()
    records.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    with pytest.raises(DamageError, match=r"00000\.tar: sample 0+\.json is damaged.*Run the index command again"):
        table_of_split(open_split(jpg, "train"))
    assert not verify(jpg)[0].intact
    assert open_readable_split(jpg, "train", "skip").images == 17
    records.write_bytes(good[:-1])
    with pytest.raises(DamageError, match=r"00000\.records: missing, or not of the \d+ bytes"):
        open_split(jpg, "train")
    index_tars(jpg, resize=SHORTEST)
    assert verify(jpg, deep=True)[0].intact


@pytest.fixture
def server(jpg: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=str(jpg))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_indexed_tars_are_read_from_a_url_too(jpg: Path, server: str, tmp_path: Path) -> None:
    index_tars(jpg, resize=SHORTEST)
    mirror = localize(server, cache=tmp_path / "cache")
    found, wanted = open_split(mirror, "train"), open_split(jpg, "train")
    assert found.digest == wanted.digest
    assert table_of_split(found).texts == table_of_split(wanted).texts
    assert not list(mirror.glob("*.tar"))  # captions need no tars
    assert pixels(found) == pixels(wanted)
    index_tars(jpg, resize=SHORTEST, tars=["00001.tar"])
    assert localize(server, cache=tmp_path / "cache") == mirror
    left = {path.name for path in mirror.iterdir() if not path.name.startswith(".")}
    assert left == {"remote.json", "dataset.json", "00001.json", "00001.tar", "00001.records"}
    assert pixels(open_split(mirror, "train")) == pixels(open_split(jpg, "train"))


def pixels(split: Split) -> list[bytes]:
    return [decode_image(image, "x").image.tobytes() for shard in split.shards for _, image, _ in read_samples(shard, shard.sidecar.samples)]


def picture(size: tuple[int, int] = (64, 64), kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, files: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE, **header: Any) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            for field, value in header.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))


def reasons(folder: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
    return {line["file"]: line["reason"] for line in lines}


def test_samples_that_cannot_be_used_are_rejects(tmp_path: Path) -> None:
    good = picture()
    samples = {
        "0001": {"jpg": good, "txt": b"Fine."},
        "0002": {"JPG": good, "json": b'{"caption": "In the JSON.", "original_width": true}'},
        "0003": {"txt": b"No image."},
        "0004": {"jpg": picture((80, 70)), "txt": b"Another size."},
        "0005": {"jpg": good[:500], "txt": b"Cut."},
        "0006": {"png": b"<html>", "txt": b"A page."},
        "0007": {"jpg": good, "json": b'{"caption": null}'},
        "0008": {"jpg": good, "txt": b" \n"},
        "0009": {"jpg": good, "txt": b"caf\xe9"},
        "0010": {"jpg": good, "txt": b"Fine.", "json": b"{"},
        "001": {"jpg": good, "txt": b"The same number as the first."},
        "a/0011": {"jpg": good, "txt": b"In a folder."},
        "../0012": {"jpg": good, "txt": b"Outside."},
        "y" * 201: {"jpg": good, "txt": b"Too long a key."},
        "\x1b[2J": {"jpg": good, "txt": b"A control character."},
        "x" * 20: {"jpg": good, "txt": b"No number."},
        "9" * 19: {"jpg": good, "txt": b"Too large a number."},
        "0014": {"jpg": good, "txt": b"x" * 10_001},
        "0013": {"png": picture((90, 64), "PNG"), "cls": b"3", "txt": b"Wide, as PNG."},
    }
    write(tmp_path / "a.tar", [(f"{key}.{ending}", data) for key, parts in samples.items() for ending, data in parts.items()])
    summary = index_tars(tmp_path, resize=SHORTEST)
    (shard,) = open_split(tmp_path, "train").shards
    records = [record for _, _, record in read_samples(shard, shard.sidecar.samples)]
    assert [(r["image_id"], r["file_name"], r["width"], r["captions"][0]["text"]) for r in records] == [
        (1, "0001.jpg", 64, "Fine."),
        (2, "0002.JPG", 64, "In the JSON."),
        (key_number("a/0011"), "a/0011.jpg", 64, "In a folder."),
        (key_number("x" * 20), "x" * 20 + ".jpg", 64, "No number."),
        (key_number("9" * 19), "9" * 19 + ".jpg", 64, "Too large a number."),
        (13, "0013.png", 90, "Wide, as PNG."),
    ]
    wanted = {
        "0003": "no_image", "0004": "other_size", "0005": "truncated", "0006": "not_an_image", "0007": "no_captions", "0008": "no_captions",
        "0009": "malformed_row", "0010": "malformed_row", "001": "duplicate_image_id", "../0012": "unusable_key",
        "0014": "caption_too_long", "y" * 201: "unusable_key", "\x1b[2J": "unusable_key",
    }  # fmt: skip
    assert reasons(tmp_path) == {f"a.tar: {key[:200]}": reason for key, reason in wanted.items()}
    assert sum(summary.rejects.values()) == 13
    assert [sample.key for sample, _, _ in shard_samples(shard)] == ["0001", "0002", "a/0011", "x" * 20, "9" * 19, "0013"]


def test_a_truncated_tar_is_rejected_completely(tmp_path: Path) -> None:
    samples = [("1.jpg", picture()), ("1.txt", b"One."), ("2.jpg", picture()), ("2.txt", b"Two.")]
    write(tmp_path / "good.tar", samples)
    write(tmp_path / "cut.tar", [(name.replace("1.", "3.").replace("2.", "4."), data) for name, data in samples])
    whole = (tmp_path / "cut.tar").read_bytes()
    end = whole.rindex(b"Two.") + 512
    for cut in (0, 100, 512, 700, whole.index(b"One."), end - 512, end - 500, (end // 512) * 512):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        assert index_tars(tmp_path, resize=SHORTEST).images == 2, cut
        assert reasons(tmp_path) == {"cut.tar": "damaged_tar"}, cut
    assert open_split(tmp_path, "train").shards[0].sidecar.rejects[0].message.startswith("cut.tar: ")
    (tmp_path / "cut.tar").write_bytes(whole)
    assert index_tars(tmp_path, resize=SHORTEST).images == 4


def test_hostile_tars_are_rejects_and_nothing_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    write(folder / "good.tar", [("1.jpg", picture()), ("1.txt", b"One.")])
    write(folder / "outside.tar", [("../../2.jpg", picture()), ("/tmp/2.txt", b"x")])
    write(folder / "links.tar", [("3.jpg", b""), ("3.txt", b"")], tarfile.SYMTYPE, linkname="/etc/passwd")
    write(folder / "devices.tar", [("4.jpg", b""), ("4.txt", b"")], tarfile.FIFOTYPE)
    write(folder / "lies.tar", [("5.jpg", picture())], pax_headers={"size": "99999999999"})
    write(folder / "negative.tar", [("6.jpg", picture())], pax_headers={"size": "-5000"})
    write(folder / "header.tar", [("7.jpg", picture())], pax_headers={"comment": "x" * 200_000})
    write(folder / "sparse.tar", [("8.jpg", picture())], tarfile.GNUTYPE_SPARSE)
    with tarfile.open(folder / "zipped.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("9.jpg"))
    (folder / "noise.tar").write_bytes(np.random.default_rng(0).bytes(5000))
    write(folder / "many.tar", [(f"{number}.x", b"") for number in range(60)])
    monkeypatch.setattr(tar_members, "MAX_MEMBERS", 50)
    assert index_tars(folder, resize=SHORTEST).images == 1
    found = reasons(folder)
    assert {name for name, reason in found.items() if reason == "damaged_tar"} >= {
        "lies.tar", "negative.tar", "header.tar", "zipped.tar", "noise.tar", "many.tar"
    }  # fmt: skip
    assert found["outside.tar: ../../2"] == "unusable_key"
    assert {path.name for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".txt")} == set()


@pytest.mark.parametrize("key", ["../x", "{second}"])
def test_a_sidecar_with_keys_that_index_does_not_write_is_made_again(jpg: Path, key: str) -> None:
    index_tars(jpg, resize=SHORTEST)
    path = sidecar_path(jpg / "00000.tar")
    honest, made = path.read_bytes(), read_sidecar(path)
    first, second, *others = made.samples
    write_json(path, replace(made, samples=(replace(first, key=key.format(second=second.key)), second, *others)).content())
    index_tars(jpg, resize=SHORTEST)
    assert path.read_bytes() == honest


def test_mistakes_are_errors_that_name_the_file(jpg: Path, tmp_path: Path) -> None:
    def refused(kind: type[Exception], says: str, **options: Any) -> None:
        with pytest.raises(kind, match=says):
            index_tars(options.pop("folder", jpg), **{"resize": SHORTEST, **options})

    refused(InputError, "none: no such folder", folder=tmp_path / "none")
    refused(InputError, r"has no \.tar file\. Give the folder that img2dataset wrote", folder=tmp_path)
    refused(InputError, r"has no \.tar file that matches x\*", tars=["x*"])
    refused(InputError, r"no sample of these tars could be used \(18 other_size\).*Check `size` and `mode`", resize=Resize(size=48, mode="squash"))
    index_tars(jpg, resize=SHORTEST)
    refused(MismatchError, "resize.size was 64 and is 32 now", resize=Resize(size=32, mode="shortest"))
    refused(InputError, r"all its tars are in other splits already \(train\)", split="val")
    refused(InputError, r"00001\.tar: is in split 'train'", split="val", tars=["00001.tar"])
    shutil.copy(jpg / "00000.tar", jpg / "again.tar")
    refused(InputError, r"again\.tar: has a sample 0*0, and so has .*00000\.tar")
    (jpg / "again.tar").rename(jpg / "dataset.tar")
    refused(InputError, r"dataset\.tar: a shard cannot have this name")
    (jpg / "dataset.tar").rename(jpg / "other.tar")
    (jpg / "other.json").write_text('{"mine": 1}')
    refused(OccupiedError, r"other\.json: is not a sidecar")
    assert (jpg / "other.json").read_text() == '{"mine": 1}'


def test_shards_of_the_shard_command_need_no_index_and_are_not_mixed_with_indexed_tars(jpg: Path, run_cli: Run, tmp_path: Path) -> None:
    synthesize(tmp_path / "drawn", images=10, seed=5)
    shard = ["shard", "--images", tmp_path / "drawn/images", "--captions", tmp_path / "drawn/captions_val.json", "--workers", 1, "--out"]
    assert run_cli(*shard, tmp_path / "shards").exit_code == 0
    with pytest.raises(OccupiedError, match="They need no index"):
        index_tars(tmp_path / "shards", resize=SHORTEST)
    index_tars(jpg, resize=SHORTEST)
    result = run_cli(*shard, jpg)
    assert result.exit_code == 1
    assert "was made with another config" in result.output
    assert read_sidecar(sidecar_path(jpg / "00000.tar")).records is not None


def test_the_language_of_indexed_captions_is_recorded_and_another_one_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [("0.jpg", picture()), ("0.txt", "一只狗在草地上奔跑。".encode()), ("1.jpg", picture()), ("1.txt", "红色".encode())])
    said: list[str] = []
    index_tars(tmp_path, resize=SHORTEST, report=said.append)
    assert [line.partition(":")[0] for line in said] == ["Most captions are Chinese, and contain no spaces"]
    with pytest.raises(MismatchError, match="language was 'en' and is 'zh' now"):
        index_tars(tmp_path, resize=SHORTEST, language="zh")
    (tmp_path / "dataset.json").unlink()
    index_tars(tmp_path, resize=SHORTEST, language="zh", report=said.append)
    table = table_of_split(open_split(tmp_path, "train"))
    assert (table.language, table.caption_tokens(0), len(said)) == ("zh", ["一只", "狗", "在", "草地", "上", "奔跑", "。"], 1)
