import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.images import Resize, decode_image
from pipeline.reading import shard_samples
from pipeline.shard import ShardConfig, write_shards
from pipeline.tokenizer import tokenize
from shards.errors import DamageError, InputError, MismatchError, OccupiedError
from shards.manifest import open_split, read_dataset_file
from tests.conftest import SMALL, Small, shard_small

ROOT = Path(__file__).parent.parent.parent


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.endswith(".lock")}


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
    summary = write_shards(images=small.source / "images", captions=small.source / "captions_train.json", out=out, config=SMALL, shard_size=10)
    assert summary.kept == summary.shards == 4
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before


def test_a_run_again_rebuilds_exactly_the_damaged_shards(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(small.shards, out)
    tar = out / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[5000] ^= 4
    tar.write_bytes(bytes(data))
    (out / "train-000002.json").unlink()
    summary = write_shards(images=small.source / "images", captions=small.source / "captions_train.json", out=out, config=SMALL, shard_size=10)
    assert summary.kept == 2
    assert contents(out) == contents(small.shards)


def test_flipped_and_cut_members_are_named_when_they_are_read(small: Small, tmp_path: Path) -> None:
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
            continue  # only the padding at the end is gone: all samples are whole
        with pytest.raises(DamageError, match=r"train-000000\.tar"):
            list(shard_samples(shard))
        with pytest.raises(DamageError, match="bytes, its sidecar says"):
            open_split(out, "train")


def test_every_kind_of_bad_input_is_a_line_in_the_rejects(tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    (photographs / "sub.dir").mkdir(parents=True)
    good = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    buffer = io.BytesIO()
    good.save(buffer, "JPEG")
    (photographs / "sub.dir" / "a.b.jpg").write_bytes(buffer.getvalue())
    (photographs / "cut.jpg").write_bytes(buffer.getvalue()[:300])
    (photographs / "page.jpg").write_text("<html>")
    names = ["sub.dir/a.b.jpg", "cut.jpg", "page.jpg", "missing.jpg", "../x.jpg"]
    annotation = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "caption": 'Line\nbreak, "quotes" & tabs\t✓'} for i in range(5)],
    }
    (tmp_path / "c.json").write_text(json.dumps(annotation))
    out = tmp_path / "out"
    summary = write_shards(images=photographs, captions=tmp_path / "c.json", out=out, config=SMALL)
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


def test_another_config_or_input_on_the_same_folder_names_the_differences(small: Small) -> None:
    arguments = {"images": small.source / "images", "captions": small.source / "captions_train.json", "out": small.shards}
    with pytest.raises(MismatchError, match=r"resize\.size is 64 there, 128 now"):
        write_shards(**arguments, config=ShardConfig(resize=Resize(size=128)), shard_size=10)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match="limit is None there, 5 now"):
        write_shards(**arguments, config=SMALL, shard_size=10, limit=5)  # type: ignore[arg-type]


def test_a_folder_that_holds_something_else_is_refused(small: Small, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(OccupiedError, match=r"thesis\.tex"):
        shard_small(small.source, tmp_path, "train")


def test_limit_takes_the_first_images(small: Small, tmp_path: Path) -> None:
    write_shards(images=small.source / "images", captions=small.source / "captions_train.json", out=tmp_path, config=SMALL, limit=7, shard_size=3)
    assert read_dataset_file(tmp_path).splits["train"]["images"] == 7
    assert len(open_split(tmp_path, "train").shards) == 3


def kill_and_compare(small: Small, out: Path, delay: float) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.conftest import shard_small\n"
        "if __name__ == '__main__':\n"
        "    shard_small(Path(sys.argv[1]), Path(sys.argv[2]), 'train', workers=2)\n"
        "    shard_small(Path(sys.argv[1]), Path(sys.argv[2]), 'val')\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(small.source), str(out)], cwd=ROOT, start_new_session=True)
    time.sleep(delay)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for split in ("train", "val"):
        shard_small(small.source, out, split)
    assert contents(out) == contents(small.shards)


@pytest.mark.parametrize("delay", [2.6, 3.0])
def test_a_killed_run_goes_on_to_the_same_bytes(small: Small, tmp_path: Path, delay: float) -> None:
    kill_and_compare(small, tmp_path / "out", delay)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(small: Small, tmp_path: Path, seed: int) -> None:
    kill_and_compare(small, tmp_path / "out", float(np.random.default_rng(seed).uniform(0.5, 5)))
