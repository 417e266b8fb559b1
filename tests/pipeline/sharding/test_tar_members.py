"""Tars as people make them: with GNU tar, cat and ln. Every sample is used, or has a line in rejects.jsonl."""

import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images.decode import Resize
from pipeline.inspection.verify import verify
from pipeline.sharding import tar_members
from pipeline.sharding.external_tars import SampleFields
from pipeline.sharding.index import index_tars
from pipeline.sharding.read_samples import read_samples
from shards.dataset import open_split
from shards.sidecar import key_number

RESIZE = Resize(size=64, mode="shortest")
needs_tar = pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar command")


def picture(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def shell(folder: Path, command: str) -> None:
    subprocess.run(["sh", "-ec", command], cwd=folder, check=True)


def files(folder: Path, *numbers: int) -> Path:
    """A folder with an image and a caption for each number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        (folder / f"{number:04d}.jpg").write_bytes(picture(number))
        (folder / f"{number:04d}.txt").write_text(f"Number {number}.")
    return folder


def write(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def indexed(folder: Path, fields: dict[str, str] | None = None) -> dict[str, tuple[bytes, list[str]]]:
    """Index a folder, verify it, and read it: the image and the captions of each key."""
    index_tars(folder, resize=RESIZE, fields=SampleFields(**(fields or {})))
    (report,) = verify(folder, deep=True)
    assert report.intact, report
    return {
        sample.key: (image, [caption["text"] for caption in record["captions"]])
        for shard in open_split(folder, "train").shards
        for sample, image, record in read_samples(shard, shard.sidecar.samples)
    }


def rejects(folder: Path) -> dict[str, str]:
    return {line["file"]: line["reason"] for line in map(json.loads, (folder / "rejects.jsonl").read_text().splitlines())}


@needs_tar
def test_hard_links_and_symbolic_links_are_the_files_that_they_name(tmp_path: Path) -> None:
    folder = files(tmp_path / "in", 1)
    shell(folder, "ln 0001.jpg 0002.jpg; ln 0001.txt 0002.txt; ln -s 0001.jpg 0003.jpg; echo Three. > 0003.txt; tar -cf ../0.tar *")
    found = indexed(tmp_path)
    assert found == {"0001": (picture(1), ["Number 1."]), "0002": (picture(1), ["Number 1."]), "0003": (picture(1), ["Three.\n"])}
    assert rejects(tmp_path) == {}


@needs_tar
def test_links_that_lead_nowhere_out_or_in_a_circle_are_rejects(tmp_path: Path) -> None:
    folder = files(tmp_path / "in", 1, 2, 3, 4)
    shell(folder, "ln -sf nowhere.jpg 0001.jpg; ln -sf /etc/passwd 0002.txt; rm 0003.jpg; ln -s 0003.jpg 0003.jpg; tar -cf ../0.tar *")
    assert list(indexed(tmp_path)) == ["0004"]
    assert rejects(tmp_path) == {"0.tar: 0001": "missing_file", "0.tar: 0002": "missing_file", "0.tar: 0003": "missing_file"}


def test_captions_without_words_are_rejects_and_the_others_of_the_sample_are_kept(tmp_path: Path) -> None:
    write(
        tmp_path / "0.tar",
        [("1.jpg", picture()), ("1.json", json.dumps({"all": ["One.", "...", " "]}).encode()), ("2.jpg", picture()), ("2.json", b'{"all": ["..."]}')],
    )
    assert indexed(tmp_path, fields={"caption": "json:all"}) == {"1": (picture(), ["One."])}
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(line["file"], line["reason"]) for line in lines] == [
        ("0.tar: 1", "caption_without_words"), ("0.tar: 1", "empty_caption"), ("0.tar: 2", "caption_without_words")
    ]  # fmt: skip


def test_devices_and_pipes_are_rejects(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [("1.jpg", picture()), ("1.txt", b"One."), ("2.jpg", picture())])
    with tarfile.open(tmp_path / "0.tar", "a") as tar:
        info = tarfile.TarInfo("2.txt")
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
    assert list(indexed(tmp_path)) == ["1"]
    assert rejects(tmp_path) == {"0.tar: 2": "unreadable_file"}


@needs_tar
@pytest.mark.parametrize("form", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1", "posix --sparse-version=1.0"])
def test_sparse_files_cost_no_other_sample(tmp_path: Path, form: str) -> None:
    folder = files(tmp_path / "in", 1, 2, 3)
    os.truncate(folder / "0002.jpg", 50_000_000)  # more than the whole tar has
    with (folder / "0003.json").open("wb") as file:
        file.write(b'{"x": 1' + b" " * 10)
        file.seek(500_000)
        file.write(b"}")
    shell(folder, f"tar --format={form} -S -cf ../0.tar *")
    assert (tmp_path / "0.tar").stat().st_size < 1_000_000
    assert list(indexed(tmp_path)) == ["0001"]
    assert rejects(tmp_path) == {"0.tar: 0002": "sparse_image", "0.tar: 0003": "malformed_row"}


@needs_tar
def test_the_text_of_a_sparse_file_is_read(tmp_path: Path) -> None:
    folder = files(tmp_path / "in", 1)
    with (folder / "0001.txt").open("wb") as file:
        file.seek(4096)
        file.write(b"After a hole.")
    shell(folder, "tar --format=gnu -S -cf ../0.tar *")
    ((_, (text,)),) = indexed(tmp_path).values()
    assert (len(text), text[-14:]) == (4096 + 13, " After a hole.")  # a caption has no NULs


@needs_tar
def test_concatenated_tars_are_read_to_the_last(tmp_path: Path) -> None:
    files(tmp_path / "a", 1, 2)
    files(tmp_path / "b", 3)
    shell(tmp_path, "tar -C a -cf a.t .; tar -C b --format=ustar -cf b.t .; tar -cf e.t -T /dev/null; cat a.t e.t b.t > 0.tar")
    assert {key: captions for key, (_, captions) in indexed(tmp_path).items()} == {
        "./0001": ["Number 1."], "./0002": ["Number 2."], "./0003": ["Number 3."]
    }  # fmt: skip
    assert rejects(tmp_path) == {}


@needs_tar
def test_bytes_after_the_end_that_are_no_tar_have_a_line(tmp_path: Path) -> None:
    files(tmp_path / "a", 1)
    shell(tmp_path, "cd a; tar -cf ../0.tar *")
    with (tmp_path / "0.tar").open("ab") as file:
        file.write(b"signature" * 100)
    assert list(indexed(tmp_path)) == ["0001"]
    assert rejects(tmp_path) == {"0.tar": "damaged_tar"}


def test_a_truncated_second_tar_damages_the_whole(tmp_path: Path) -> None:
    write(tmp_path / "good.tar", [("9.jpg", picture()), ("9.txt", b"x")])
    write(tmp_path / "a.t", [("1.jpg", picture()), ("1.txt", b"One.")])
    write(tmp_path / "b.t", [("2.jpg", picture()), ("2.txt", b"Two.")])
    (tmp_path / "0.tar").write_bytes((tmp_path / "a.t").read_bytes() + (tmp_path / "b.t").read_bytes()[:2000])
    assert list(indexed(tmp_path)) == ["9"]
    assert rejects(tmp_path) == {"0.tar": "damaged_tar"}


def test_a_name_that_occurs_twice_is_a_reject_and_the_first_is_kept(tmp_path: Path) -> None:
    members = [("1.jpg", picture(1)), ("1.txt", b"First."), ("1.txt", b"Second."), ("2.jpg", picture(2)), ("2.txt", b"Two."), ("1.jpg", picture(3))]
    write(tmp_path / "0.tar", members)
    assert indexed(tmp_path) == {"1": (picture(1), ["First."]), "2": (picture(2), ["Two."])}
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(line["file"], line["reason"]) for line in lines] == [("0.tar: 1.txt", "duplicate_member"), ("0.tar: 1.jpg", "duplicate_member")]


def test_members_of_a_sample_may_be_apart(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [("1.jpg", picture(1)), ("2.jpg", picture(2)), ("2.txt", b"Two."), ("README", b""), ("1.txt", b"One.")])
    assert indexed(tmp_path) == {"1": (picture(1), ["One."]), "2": (picture(2), ["Two."])}


def test_a_byte_order_mark_is_not_part_of_the_caption(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [("1.jpg", picture()), ("1.txt", b"\xef\xbb\xbfA dog.")])
    assert indexed(tmp_path) == {"1": (picture(), ["A dog."])}


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("outputs.txt", ["A text."]),
        ("Meta.JSON:text.en", ["English."]),
        ("meta.json:all", ["One.", "Two."]),
        ("meta.json:all.1", ["Two."]),
        ("meta.json", ['{"text": {"en": "English."}, "all": ["One.", "", "Two."]}']),
    ],
)
def test_fields_say_which_members_are_image_and_caption(tmp_path: Path, caption: str, wanted: list[str]) -> None:
    meta = b'{"text": {"en": "English."}, "all": ["One.", "", "Two."]}'
    if caption == "meta.json:all.1":
        meta = meta.replace(b' "",', b"")
    members = [("dog/a.input.jpg", picture(1)), ("dog/a.mask.jpg", picture(2)), ("dog/a.outputs.txt", b"A text."), ("dog/a.meta.json", meta)]
    write(tmp_path / "0.tar", members)
    assert indexed(tmp_path, fields={"image": "input.jpg", "caption": caption}) == {"dog/a": (picture(1), wanted)}
    (shard,) = open_split(tmp_path, "train").shards
    ((sample, _, record),) = read_samples(shard, shard.sidecar.samples)
    assert record["image_id"] == key_number("dog/a") < 2**53
    assert len({caption["id"] for caption in record["captions"]}) == len(wanted) == sample.captions


@pytest.mark.parametrize("caption", ["nothing.txt", "meta.json:text.de", "meta.json:text.en.x", "meta.json:all.9"])
def test_a_field_that_a_sample_lacks_is_a_reject(tmp_path: Path, caption: str) -> None:
    write(tmp_path / "0.tar", [("1.jpg", picture()), ("1.meta.json", b'{"text": {"en": "English."}, "all": ["One."]}'), ("1.t.txt", b"x")])
    write(tmp_path / "1.tar", [("2.jpg", picture()), (f"2.{caption.partition(':')[0]}", b'"A."' if ":" in caption else b"A.")])
    if ":" in caption:
        write(
            tmp_path / "1.tar",
            [("2.jpg", picture()), ("2.meta.json", json.dumps({"all": ["A."] * 10, "text": {"de": "A.", "en": {"x": "A."}}}).encode())],
        )
    assert indexed(tmp_path, fields={"caption": caption}) == {"2": (picture(), ["A."])}
    assert rejects(tmp_path) == {"0.tar: 1": "no_captions"}


def test_other_fields_for_the_same_folder_are_refused(tmp_path: Path, run_cli: Any) -> None:
    write(tmp_path / "0.tar", [("1.jpg", picture()), ("1.txt", b"A."), ("1.b.txt", b"B.")])
    index = ["index", tmp_path, "--size", 64, "--resize", "shortest", "--workers", 1]
    assert run_cli(*index).exit_code == 0
    result = run_cli(*index, "--field", "caption=b.txt")
    assert result.exit_code == 1
    assert "fields.caption was None and is 'b.txt' now" in result.output
    for wrong in ("caption", "text=txt", "caption=", "image=json:x"):
        assert run_cli(*index, "--field", wrong).exit_code == 2


def test_headers_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "MAX_HEADER_BYTES", 4096)
    write(tmp_path / "good.tar", [("9.jpg", picture()), ("9.txt", b"x")])
    info = tarfile.TarInfo("1.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9", "GNU.sparse.name": "1.jpg"}
    info.size = 100 * 512
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO((b"9999999\n" + b"0\n" * 30_000)[: info.size].ljust(info.size, b"0")))
    assert list(indexed(tmp_path)) == ["9"]
    assert rejects(tmp_path) == {"0.tar": "damaged_tar"}
