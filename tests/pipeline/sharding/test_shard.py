import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.captioning.caption import caption_images
from pipeline.captioning.captioner import CaptionerConfig
from pipeline.captions.english import tokenize
from pipeline.images.decode import Resize, decode_image
from pipeline.inspection.verify import verify
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.read_samples import shard_samples
from pipeline.sharding.shard import write_shards
from pipeline.sharding.splits import SplitSummary
from shards.dataset import open_split, read_dataset_file
from shards.errors import DamageError, InputError, MismatchError, OccupiedError
from tests.caching import cache_features
from tests.conftest import SMALL, TINY_MODEL, Small, shard_small
from tests.pipeline.short_runs import train_on_cpu
from tests.processes import run_python, start_python


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_the_bytes_do_not_depend_on_the_number_of_workers(small: Small, tmp_path: Path) -> None:
    shard_small(small.source, tmp_path / "out", "train", workers=3)
    shard_small(small.source, tmp_path / "out", "val", workers=2)
    assert contents(tmp_path / "out") == contents(small.shards)


def test_a_record_holds_the_resized_image_and_every_tokenized_caption(small: Small) -> None:
    annotation = json.loads((small.source / "captions_train.json").read_text())
    split = open_split(small.shards, "train")
    assert (split.images, split.captions, len(split.shards)) == (36, 180, 4)
    shard = split.shards[1]
    sample, jpeg, record = list(shard_samples(shard))[3]
    assert sample.key == "000000013"
    image = annotation["images"][13]
    assert (record["image_id"], record["file_name"], record["width"], record["height"]) == (
        image["id"],
        image["file_name"],
        image["width"],
        image["height"],
    )
    texts = [a["caption"] for a in annotation["annotations"] if a["image_id"] == image["id"]]
    assert [c["text"] for c in record["captions"]] == texts
    assert [c["tokens"] for c in record["captions"]] == [tokenize(text) for text in texts]
    stored = np.asarray(decode_image(jpeg, "x").image.convert("L"), np.int16)
    original = decode_image((small.source / "images" / image["file_name"]).read_bytes(), "x").image
    wanted = np.asarray(original.resize((64, 64), Image.Resampling.LANCZOS).convert("L"), np.int16)
    assert stored.shape == (64, 64)
    assert np.abs(stored - wanted).mean() < 3


def test_plain_webdataset_reads_the_tars(small: Small) -> None:
    urls = [str(small.shards / f"train-{i:06d}.tar") for i in range(4)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [s["__key__"] for s in samples] == [f"{i:09d}" for i in range(36)]
    assert len(json.loads(samples[0]["json"])["captions"]) == 5


def test_a_second_run_rewrites_nothing(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(small.shards, out)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    summary = write_shards(
        images=small.source / "images", captions=small.source / "captions_train.json", out=out, config=replace(SMALL, shard_size=10)
    )
    assert summary.kept == summary.shards == 4
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_another_run_rewrites_only_the_damaged_shards(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(small.shards, out)
    tar = out / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[5000] ^= 4
    tar.write_bytes(bytes(data))
    (out / "train-000002.json").unlink()
    summary = write_shards(
        images=small.source / "images", captions=small.source / "captions_train.json", out=out, config=replace(SMALL, shard_size=10)
    )
    assert summary.kept == 2
    assert contents(out) == contents(small.shards)


def test_damaged_and_truncated_members_are_named_when_they_are_read(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(small.shards, out)
    tar = out / "train-000000.tar"
    good = tar.read_bytes()
    member = open_split(out, "train").shards[0].sidecar.samples[2].jpg
    tar.write_bytes(good[: member.offset + 9] + bytes([good[member.offset + 9] ^ 1]) + good[member.offset + 10 :])
    with pytest.raises(DamageError, match=r"train-000000\.tar: sample 000000002\.jpg"):
        list(shard_samples(open_split(out, "train").shards[0]))
    shard = open_split(out, "train").shards[0]
    for end in range(0, len(good), 512 * 5):
        tar.write_bytes(good[:end])
        if end >= shard.sidecar.samples[-1].json.offset + shard.sidecar.samples[-1].json.size:
            continue  # only the padding at the end is missing: all samples are complete
        with pytest.raises(DamageError, match=r"train-000000\.tar"):
            list(shard_samples(shard))
        with pytest.raises(DamageError, match="bytes, but its sidecar lists"):
            open_split(out, "train")


def test_every_kind_of_bad_input_has_a_line_in_the_rejects(tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "sub.dir").mkdir(parents=True)
    good = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    buffer = io.BytesIO()
    good.save(buffer, "JPEG")
    (images / "sub.dir" / "a.b.jpg").write_bytes(buffer.getvalue())
    (images / "cut.jpg").write_bytes(buffer.getvalue()[:300])
    (images / "page.jpg").write_text("<html>")
    names = ["sub.dir/a.b.jpg", "cut.jpg", "page.jpg", "missing.jpg", "../x.jpg"]
    annotation = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "caption": 'Line\nbreak, "quotes" & tabs\t✓'} for i in range(5)],
    }
    (tmp_path / "c.json").write_text(json.dumps(annotation))
    out = tmp_path / "out"
    summary = write_shards(images=images, captions=tmp_path / "c.json", out=out, config=SMALL)
    assert summary.images == 1
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    reasons = {line["file"]: line["reason"] for line in lines}
    assert reasons == {"cut.jpg": "truncated", "page.jpg": "not_an_image", "missing.jpg": "missing_file", "../x.jpg": "path_escape"}
    assert all(line["split"] == "train" and line["message"] for line in lines)
    _, _, record = next(iter(shard_samples(open_split(out, "train").shards[0])))
    assert record["file_name"] == "sub.dir/a.b.jpg"
    assert record["captions"][0]["text"] == annotation["annotations"][0]["caption"]
    assert record["captions"][0]["tokens"][:3] == ["line", "break", ","]
    with tarfile.open(out / "train-000000.tar") as tar:
        assert tar.getnames() == ["000000000.jpg", "000000000.json"]


def test_a_split_without_a_usable_image_is_an_error_that_points_to_the_rejects(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "c.json").write_text('{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [{"id": 1, "image_id": 1, "caption": "c"}]}')
    for text in ((tmp_path / "c.json").read_text(), '{"images": [], "annotations": []}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(InputError, match=r"no image of split 'train'.*rejects\.jsonl"):
            write_shards(images=tmp_path / "images", captions=tmp_path / "c.json", out=tmp_path / "out", config=SMALL)


def test_another_config_or_input_for_the_same_folder_is_refused_with_the_differences(small: Small) -> None:
    arguments = {"images": small.source / "images", "captions": small.source / "captions_train.json", "out": small.shards}
    with pytest.raises(MismatchError, match=r"resize\.size was 64 and is 128 now"):
        write_shards(**arguments, config=ShardConfig(resize=Resize(size=128), shard_size=10))  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="limit was None and is 5 now"):
        write_shards(**arguments, config=replace(SMALL, shard_size=10, limit=5))  # type: ignore[arg-type]


def test_a_folder_that_holds_something_else_is_refused(small: Small, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OccupiedError, match=r"thesis\.tex"):
        shard_small(small.source, tmp_path, "train")


def test_limit_takes_the_first_images(small: Small, tmp_path: Path) -> None:
    config = replace(SMALL, limit=7, shard_size=3)
    write_shards(images=small.source / "images", captions=small.source / "captions_train.json", out=tmp_path, config=config)
    assert read_dataset_file(tmp_path).splits["train"]["images"] == 7
    assert len(open_split(tmp_path, "train").shards) == 3


KILLED_SHARD_SIZE = 2  # 18 shards leave enough time for a kill in between


def kill_and_compare(small: Small, folder: Path, finished: int, delay: float) -> None:
    """Kill a run with two workers ``delay`` seconds after the given number of shards is written; then finish it."""
    code = (
        "import sys; from pathlib import Path; from tests.conftest import shard_small\n"
        f"shard_small(Path(sys.argv[1]), Path(sys.argv[2]), 'train', workers=2, shard_size={KILLED_SHARD_SIZE})\n"
        "import time; time.sleep(600)"  # however late this process sees that so many shards are there
    )
    out = folder / "killed"
    child = start_python(code, small.source, out, own_group=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("train-*.json"))) < finished:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    for name in ("killed", "whole"):
        shard_small(small.source, folder / name, "train", shard_size=KILLED_SHARD_SIZE)
    assert contents(out) == contents(folder / "whole")


@pytest.mark.parametrize("finished", [1, 9])
def test_a_killed_run_resumes_to_the_same_bytes(small: Small, tmp_path: Path, finished: int) -> None:
    kill_and_compare(small, tmp_path, finished, 0)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(small: Small, tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    kill_and_compare(small, tmp_path, int(random.integers(0, 15)), float(random.uniform(0, 0.02)))


# Kills itself before the n-th time that it opens a file for writing, renames or removes a file in the dataset's folder
FAULT = """
import os, signal, sys
from pathlib import Path
from tests.conftest import shard_small
source, out, fault = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
points = 0
def hook(event, args):
    global points
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and args and str(args[0]).startswith(str(out)):
        points += 1
        if points == fault:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
for split in ("train", "val"):
    shard_small(source, out, split)
print(points)
"""


def run_to_fault(small: Small, out: Path, fault: int) -> "subprocess.CompletedProcess[str]":
    return run_python(FAULT, small.source, out, fault)


def finish_and_compare(small: Small, out: Path) -> None:
    for split in ("train", "val"):
        shard_small(small.source, out, split)
    assert contents(out) == contents(small.shards)


def fault_points(small: Small, out: Path) -> int:
    done = run_to_fault(small, out, 0)
    assert contents(out) == contents(small.shards)
    return int(done.stdout)


def test_a_run_killed_at_seeded_points_resumes_to_the_same_bytes_and_leaves_nothing_else(small: Small, tmp_path: Path) -> None:
    points = fault_points(small, tmp_path / "whole")
    assert points > 50
    for fault in np.random.default_rng(5).choice(np.arange(1, points + 1), size=6, replace=False).tolist():
        out = tmp_path / f"fault-{fault}"
        assert run_to_fault(small, out, fault).returncode == -signal.SIGKILL
        finish_and_compare(small, out)


@pytest.mark.full
def test_a_run_killed_at_every_point_resumes_to_the_same_bytes_and_leaves_nothing_else(small: Small, tmp_path: Path) -> None:
    for fault in range(1, fault_points(small, tmp_path / "whole") + 1):
        out = tmp_path / f"fault-{fault}"
        assert run_to_fault(small, out, fault).returncode == -signal.SIGKILL
        finish_and_compare(small, out)


def test_a_full_disk_is_a_clear_error_and_finished_shards_stay_valid(small: Small, tmp_path: Path) -> None:
    """The limit for the size of a file is just below the largest shard. Split val is finished before."""
    sizes = [(small.shards / f"train-{index:06d}.tar").stat().st_size for index in range(4)]
    limit, grows = max(sizes) - 1, sizes.index(max(sizes))
    out = tmp_path / "out"
    shard_small(small.source, out, "val")
    finished = contents(out)
    code = (
        "import resource, sys; from pathlib import Path; from cli import cli\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "cli(['shard', '--images', sys.argv[1] + '/images', '--captions', sys.argv[1] + '/captions_train.json', '--out', sys.argv[2],"
        " '--size', '64', '--shard-size', '10', '--workers', '1'])"
    )
    done = run_python(code, small.source, out)
    assert done.returncode == 1
    assert f"train-{grows:06d}.tar: no space left" in done.stderr
    assert "Traceback" not in done.stderr
    before = {name: data for name, data in contents(small.shards).items() if name.startswith("train") and int(name[6:12]) < grows}
    assert contents(out) == {**finished, **before}
    assert [report.intact for report in verify(out, deep=True)] == [True]
    finish_and_compare(small, out)


def test_the_second_of_two_runs_on_one_split_is_refused(small: Small, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import pipeline.sharding.shard as s; from tests.conftest import shard_small\n"
        "write = s.write_shard\n"
        "def slow(task):\n    print('writing', flush=True); sys.stdin.readline(); return write(task)\n"
        "s.write_shard = slow\n"
        "shard_small(Path(sys.argv[1]), Path(sys.argv[2]), 'train', shard_size=100)"
    )
    with start_python(code, small.source, tmp_path / "out", pipes=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        with pytest.raises(OccupiedError, match="another process is writing split 'train'"):
            shard_small(small.source, tmp_path / "out", "train", shard_size=100)
        shard_small(small.source, tmp_path / "out", "val", shard_size=100)  # another split has its own lock
        child.communicate("\n")
    assert child.returncode == 0
    assert [report.intact for report in verify(tmp_path / "out", deep=True)] == [True, True]


@pytest.mark.parametrize("damage", [b"{", b"[]", None])
def test_the_repair_that_a_damaged_dataset_file_suggests_works(small: Small, tmp_path: Path, damage: bytes | None) -> None:
    out = tmp_path / "out"
    shutil.copytree(small.shards, out)
    path = out / "dataset.json"
    path.write_bytes(path.read_bytes().replace(b'"limit": null', b'"limit": 1234') if damage is None else damage)
    with pytest.raises(DamageError, match=r"Delete it, then run the shard command of each split again: complete shards are kept"):
        shard_small(small.source, out, "train")
    path.unlink()
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    finish_and_compare(small, out)
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")} == before


def draw_images(folder: Path, count: int) -> list[Path]:
    """Write small noisy JPEGs and their captions file."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(1)
    paths = [folder / "images" / f"{index}.jpg" for index in range(count)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    annotation = {
        "images": [{"id": index, "file_name": path.name} for index, path in enumerate(paths)],
        "annotations": [{"id": index, "image_id": index, "caption": f"Image {index}."} for index in range(count)],
    }
    (folder / "c.json").write_text(json.dumps(annotation))
    return paths


def shard_images(folder: Path, **options: Any) -> SplitSummary:
    config = replace(SMALL, shard_size=3, **options)
    return write_shards(images=folder / "images", captions=folder / "c.json", out=folder / "out", config=config)


def test_an_image_replaced_by_one_of_equal_size_is_detected_by_check_sources(tmp_path: Path) -> None:
    paths = draw_images(tmp_path, 6)
    assert shard_images(tmp_path).kept == 0
    assert shard_images(tmp_path, check_sources=True).kept == 2
    data = bytearray(paths[4].read_bytes())
    data[-10] ^= 16
    paths[4].write_bytes(bytes(data))
    assert shard_images(tmp_path).kept == 2
    assert shard_images(tmp_path, check_sources=True).kept == 1
    assert shard_images(tmp_path, check_sources=True).kept == 2


def test_an_added_or_larger_image_is_detected_without_options(tmp_path: Path) -> None:
    paths = draw_images(tmp_path, 6)
    late = paths[1].read_bytes()
    paths[1].unlink()
    assert shard_images(tmp_path).rejects == {"missing_file": 1}
    paths[1].write_bytes(late)
    again = shard_images(tmp_path)
    assert (again.kept, again.images, again.rejects) == (1, 6, {})
    assert (tmp_path / "out" / "rejects.jsonl").read_bytes() == b""


def test_retry_rejected_rewrites_only_shards_with_rejects(tmp_path: Path) -> None:
    paths = draw_images(tmp_path, 6)
    good = paths[1].read_bytes()
    paths[1].write_bytes(b"<" + good[1:])  # as large as before
    assert shard_images(tmp_path).rejects == {"not_an_image": 1}
    paths[1].write_bytes(good)
    assert shard_images(tmp_path).kept == 2
    retried = shard_images(tmp_path, retry_rejected=True)
    assert (retried.kept, retried.images, retried.rejects) == (1, 6, {})
    assert shard_images(tmp_path, retry_rejected=True).kept == 2


def test_max_rejects_stops_a_run_and_keeps_finished_shards(tmp_path: Path) -> None:
    paths = draw_images(tmp_path, 12)
    for path in paths[3:8]:
        path.write_text("<html>")
    with pytest.raises(InputError, match=r"3 of 12 images were rejected \(3 not_an_image\), and `max_rejects` allows 2.*rejects\.jsonl"):
        shard_images(tmp_path, max_rejects=0.2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == ["3.jpg", "4.jpg", "5.jpg"]
    assert not (tmp_path / "out" / "dataset.json").exists()
    done = shard_images(tmp_path, max_rejects=5 / 12)
    assert (done.kept, done.rejects) == (2, {"not_an_image": 5})
    with pytest.raises(InputError, match=r"`max_rejects` 1\.5"):
        shard_images(tmp_path, max_rejects=1.5)


@pytest.mark.parametrize("caption", ["a\nb", "a\r\nb", "a\u2028b\u2029c\x85d", 'a "b" \\ c', "a\tb\x1fc", "\U0001f415 dog", "{a}", "a, b"])
def test_captions_with_line_breaks_and_quotes_are_stored_unchanged(tmp_path: Path, caption: str) -> None:
    draw_images(tmp_path, 1)
    annotation = json.loads((tmp_path / "c.json").read_text())
    annotation["annotations"][0]["caption"] = caption
    annotation["images"].append({"id": 99, "file_name": caption + ".jpg"})  # missing, so that its name is in the rejects
    annotation["annotations"].append({"id": 99, "image_id": 99, "caption": caption})
    (tmp_path / "c.json").write_text(json.dumps(annotation))
    shard_images(tmp_path)
    _, _, record = next(iter(shard_samples(open_split(tmp_path / "out", "train").shards[0])))
    assert record["captions"] == [{"id": 0, "text": caption, "tokens": tokenize(caption)}]
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_bytes().decode().splitlines()
    assert json.loads(line)["file"] == caption + ".jpg"


@pytest.mark.parametrize(("mode", "size"), [("squash", (32, 32)), ("shortest", (43, 32)), ("pad", (32, 32)), ("none", (43, 32))])
def test_every_resize_mode_passes_through_all_stages(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    draw_images(tmp_path, 4)
    config = ShardConfig(resize=Resize(size=32, mode=mode))
    write_shards(images=tmp_path / "images", captions=tmp_path / "c.json", out=tmp_path / "shards", config=config)
    assert verify(tmp_path / "shards", deep=True)[0].intact
    images = [decode_image(jpeg, "x").image for _, jpeg, _ in shard_samples(open_split(tmp_path / "shards", "train").shards[0])]
    assert {image.size for image in images} == {size}
    cached = cache_features(shards=tmp_path / "shards", out=tmp_path / "f", backbone="resnet18", weights="random", device="cpu")
    assert cached[0].images == 4
    raw = {"shards": tmp_path / "shards", "backbone": "resnet18", "weights": "random"}
    train_on_cpu(out=tmp_path / "raw", settings={**TINY_MODEL, "epochs": 1}, **raw)  # type: ignore[arg-type]
    captioned = list(caption_images(CaptionerConfig(run=tmp_path / "raw", device="cpu"), [str(tmp_path / "images" / "0.jpg")]))
    assert captioned[0].problem is None


def test_mode_none_stores_a_plain_jpeg_unchanged_and_encodes_everything_else(tmp_path: Path) -> None:
    paths = draw_images(tmp_path, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(paths[1]).save(paths[1], exif=exif)
    Image.open(paths[2]).convert("L").save(paths[2])
    paths[3].write_bytes(paths[0].read_bytes()[:600])
    config = ShardConfig(resize=Resize(size=16, mode="none"))
    summary = write_shards(images=tmp_path / "images", captions=tmp_path / "c.json", out=tmp_path / "out", config=config)
    assert summary.rejects == {"truncated": 1}
    stored = [jpeg for _, jpeg, _ in shard_samples(open_split(tmp_path / "out", "train").shards[0])]
    assert stored[0] == paths[0].read_bytes()
    assert decode_image(stored[1], "x").image.size == (30, 40)
    assert decode_image(stored[2], "x").image.mode == "RGB"
    assert stored[2] != paths[2].read_bytes()
