"""Downloads from a real web server on 127.0.0.1, with small datasets in place of the published ones."""

import hashlib
import io
import json
import os
import signal
import stat
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from cli import cli
from pipeline.datasets import download as download_module
from pipeline.datasets.catalogue import DATASETS, Archive, Dataset
from pipeline.datasets.download import download
from pipeline.execution import progress as progress_module
from shards import fetch
from shards.atomic import hold_lock
from shards.errors import DamageError, InputError, OccupiedError, ResourceError
from tests.processes import PythonProcess, run_python, start_python
from tests.range_server import RangeServer, range_server

Run = Callable[..., Result]


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return out.getvalue()


def described(content: bytes, archive: Archive) -> Archive:
    return replace(archive, size=len(content), md5=hashlib.md5(content).hexdigest(), unpacked=2 * len(content))


TRAIN = {f"train2014/COCO_train2014_{n:012d}.jpg": os.urandom(20_000) for n in range(30)}
VAL = {f"val2014/COCO_val2014_{n:012d}.jpg": os.urandom(20_000) for n in range(10)}
ANNOTATIONS = {"annotations/captions_train2014.json": b"{}" * 3000, "annotations/captions_val2014.json": b"{}"}
ARCHIVES = {"/zips/train2014.zip": zipped(TRAIN), "/zips/val2014.zip": zipped(VAL), "/annotations/annotations_trainval2014.zip": zipped(ANNOTATIONS)}


def small_coco() -> Dataset:
    coco = DATASETS["coco2014"]
    return replace(coco, parts={name: described(ARCHIVES[f"/{archive.path}"], archive) for name, archive in coco.parts.items()})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setitem(DATASETS, "coco2014", small_coco())
    with range_server() as server:
        server.files |= ARCHIVES
        yield server


def unpacked(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for folder in root.iterdir() if folder.is_dir() for path in folder.rglob("*.*")}


def test_all_parts_are_fetched_checked_and_unpacked_and_the_next_command_is_printed(server: RangeServer, tmp_path: Path, run_cli: Run) -> None:
    root = tmp_path / "data"
    result = run_cli("download", "coco2014", "--root", root, "--base-url", f"{server.url}/")
    assert result.exit_code == 0, result.output
    assert unpacked(root) == TRAIN | VAL | ANNOTATIONS
    last = result.output.splitlines()[-1]
    captions = f"{root}/annotations/captions_train2014.json"
    assert last == f"Next: python cli.py shard --images {root}/train2014 --captions {captions} --out {root}/shards --split train"
    assert f"train2014.zip: 30 files, 0.6 MB, complete in {root} (30 extracted now)." in result.output
    assert f"can be deleted (0.8 MB): {root}/annotations_trainval2014.zip {root}/train2014.zip {root}/val2014.zip" in result.output


def test_a_second_run_fetches_nothing_even_if_the_archives_were_deleted(server: RangeServer, tmp_path: Path) -> None:
    download("coco2014", root=tmp_path, base_url=server.url)
    for archive in tmp_path.glob("*.zip"):
        archive.unlink()
    server.received.clear()
    summary = download("coco2014", root=tmp_path, base_url=server.url)
    assert server.received == []
    assert [(one.files, one.written, one.fetched, one.archive) for one in summary.archives] == [(2, 0, 0, None), (30, 0, 0, None), (10, 0, 0, None)]


def test_a_damaged_file_is_unpacked_again_and_the_others_stay(server: RangeServer, tmp_path: Path) -> None:
    download("coco2014", root=tmp_path, base_url=server.url)
    name = min(TRAIN)
    (tmp_path / name).write_bytes(bytes(20_000))
    (tmp_path / "train2014.zip").unlink()
    server.received.clear()
    summary = download("coco2014", root=tmp_path, base_url=server.url)
    assert (tmp_path / name).read_bytes() == TRAIN[name]
    assert [one.written for one in summary.archives] == [0, 1, 0]
    assert [path for path, _ in server.received] == ["/zips/train2014.zip"]


def test_parts_can_be_selected_and_unknown_ones_are_refused(server: RangeServer, tmp_path: Path, run_cli: Run) -> None:
    result = run_cli("download", "coco2014", "--root", tmp_path, "--base-url", server.url, "--parts", "val,annotations")
    assert result.exit_code == 0, result.output
    assert unpacked(tmp_path) == VAL | ANNOTATIONS
    assert "--split val" in result.output.splitlines()[-1]
    result = run_cli("download", "coco2014", "--root", tmp_path, "--parts", "test")
    assert (result.exit_code, result.output.splitlines()[-1]) == (
        2,
        "Error: --parts test: coco2014 has no such part. Its parts are annotations,train,val.",
    )


def test_an_archive_that_the_user_downloaded_is_checked_and_used(server: RangeServer, tmp_path: Path) -> None:
    (tmp_path / "val2014.zip").write_bytes(ARCHIVES["/zips/val2014.zip"])
    download("coco2014", root=tmp_path, parts=["val"], base_url=server.url)
    assert unpacked(tmp_path) == VAL
    assert server.received == []
    (tmp_path / "train2014.zip").write_bytes(zipped({"train2014/other.jpg": b"1"}))
    with pytest.raises(DamageError, match=r"train2014\.zip: has \d+ bytes, but the published archive has \d+\. Delete it"):
        download("coco2014", root=tmp_path, parts=["train"], base_url=server.url)


def test_other_content_of_the_same_size_is_detected_by_its_md5_and_deleted(server: RangeServer, tmp_path: Path) -> None:
    right = ARCHIVES["/zips/val2014.zip"]
    server.files["/zips/val2014.zip"] = right[:-1] + b"x"
    with pytest.raises(DamageError, match=r"val2014\.zip: has the MD5 [0-9a-f]{32}, but the published archive has [0-9a-f]{32}"):
        download("coco2014", root=tmp_path, parts=["val"], base_url=server.url)
    assert not list(tmp_path.glob("*.zip"))
    server.files["/zips/val2014.zip"] = right
    download("coco2014", root=tmp_path, parts=["val"], base_url=server.url)
    assert unpacked(tmp_path) == VAL


def test_a_dead_url_is_named_with_the_file_and_how_to_download_it_by_hand(server: RangeServer, tmp_path: Path, run_cli: Run) -> None:
    server.status["/zips/val2014.zip"] = 404
    result = run_cli("download", "coco2014", "--root", tmp_path, "--base-url", server.url, "--parts", "val")
    assert result.exit_code == 1
    assert result.output == (
        f"Error: {server.url}/zips/val2014.zip: no such file. Or download val2014.zip yourself (see https://cocodataset.org/#download), "
        f"put it into {tmp_path} and run the same command again.\n"
    )


def test_flickr8k_says_where_to_request_it_and_uses_archives_that_the_user_downloaded(tmp_path: Path, run_cli: Run) -> None:
    result = run_cli("download", "flickr8k", "--root", tmp_path)
    assert result.exit_code == 1
    assert "Request it at https://forms.illinois.edu/sec/1713398" in result.output
    assert f"download Flickr8k_Dataset.zip and Flickr8k_text.zip into {tmp_path}" in result.output
    (tmp_path / "Flickr8k_Dataset.zip").write_bytes(zipped({"Flicker8k_Dataset/1.jpg": b"1", "__MACOSX/._1.jpg": b"2"}))
    assert "download Flickr8k_text.zip into" in run_cli("download", "flickr8k", "--root", tmp_path).output
    (tmp_path / "Flickr8k_text.zip").write_bytes(zipped({"Flickr8k.token.txt": b"3"}))
    result = run_cli("download", "flickr8k", "--root", tmp_path)
    assert result.exit_code == 0, result.output
    assert unpacked(tmp_path) == {"flickr8k/Flicker8k_Dataset/1.jpg": b"1", "flickr8k/Flickr8k.token.txt": b"3"}


def test_a_malicious_archive_writes_nothing(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = zipfile.ZipInfo("val2014/link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as file:
        file.writestr("val2014/good.jpg", "1")
        file.writestr(info, "/etc")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("val2014/zeros.jpg", bytes(10 << 20))
    for content, says in ((zipped({"../../up.jpg": b"1"}), "leads out"), (link.getvalue(), "a link"), (bomb.getvalue(), "more than its limits")):
        root = tmp_path / says
        coco = DATASETS["coco2014"]
        monkeypatch.setitem(DATASETS, "coco2014", replace(coco, parts={"val": described(content, coco.parts["val"])}))
        server.files["/zips/val2014.zip"] = content
        with pytest.raises(DamageError, match=says):
            download("coco2014", root=root, base_url=server.url)
        assert sorted(path.name for path in root.iterdir()) == ["val2014.zip"]
    assert not list(tmp_path.rglob("up.jpg"))


def test_two_processes_do_not_download_one_dataset_into_one_folder(server: RangeServer, tmp_path: Path) -> None:
    with hold_lock(tmp_path, "coco2014", "downloading"), pytest.raises(OccupiedError, match="another process is downloading here"):
        download("coco2014", root=tmp_path, base_url=server.url)


def test_the_free_space_is_checked_first_and_existing_files_count(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = [0]
    monkeypatch.setattr(download_module, "free_bytes", lambda _: free[0] + download_module.SPARE_BYTES)  # a value that no real disk has
    archive = DATASETS["coco2014"].parts["val"]
    assert archive.size is not None
    free[0] = archive.size + archive.unpacked - 1
    with pytest.raises(ResourceError, match=r"not enough space: 0\.00 GB still have to be fetched and 0\.00 GB unpacked"):
        download("coco2014", root=tmp_path, parts=["val"], base_url=server.url)
    assert server.received == []
    free[0] += 1
    download("coco2014", root=tmp_path, parts=["val"], base_url=server.url)
    (tmp_path / ".val2014.zip.json").unlink()
    free[0] = 0  # archive and files exist already
    download("coco2014", root=tmp_path, parts=["val"], base_url=server.url)
    (tmp_path / min(VAL)).unlink()
    (tmp_path / ".val2014.zip.json").unlink()
    free[0] = 20_000 - 1
    with pytest.raises(ResourceError, match="not enough space"):
        download("coco2014", root=tmp_path, parts=["val"], base_url=server.url)
    free[0] = 20_000
    download("coco2014", root=tmp_path, parts=["val"], base_url=server.url)


def test_an_archive_of_unknown_size_reserves_no_space_and_its_progress_has_no_total(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = [0]
    monkeypatch.setattr(download_module, "free_bytes", lambda _: free[0] + download_module.SPARE_BYTES)
    monkeypatch.setattr(progress_module, "LINE_SECONDS", 0.0)
    coco = DATASETS["coco2014"]
    archive = replace(coco.parts["val"], size=None)
    monkeypatch.setitem(DATASETS, "coco2014", replace(coco, parts={"val": archive}))
    (tmp_path / ".val2014.zip.tmp").write_bytes(ARCHIVES["/zips/val2014.zip"][:1000])
    free[0] = archive.unpacked - 1
    with pytest.raises(ResourceError, match="not enough space"):
        download("coco2014", root=tmp_path, base_url=server.url)
    free[0] += 1
    download("coco2014", root=tmp_path, base_url=server.url, quiet=False)
    assert unpacked(tmp_path) == VAL
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Downloading")]
    assert lines
    assert not [line for line in lines if " of " in line or " left" in line]


def program(server: RangeServer, root: Path, before: str = "") -> str:
    """Code that downloads the small dataset, for a process of its own."""
    parts = {name: vars(archive) for name, archive in small_coco().parts.items()}
    return (
        "import sys, json\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        f"from pipeline.datasets.catalogue import DATASETS, Archive\nfrom pipeline.datasets.download import download\n"
        f"parts = {{name: Archive(**fields) for name, fields in json.loads({json.dumps(parts)!r}).items()}}\n"
        f"DATASETS['coco2014'] = replace(DATASETS['coco2014'], parts=parts)\n{before}\n"
        f"download('coco2014', root=Path({str(root)!r}), base_url={server.url!r}, quiet=False)\n"
    )


def wait_until(condition: Callable[[], bool], process: PythonProcess) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_kill_during_the_download_loses_only_the_chunk_in_progress(server: RangeServer, tmp_path: Path) -> None:
    server.slow = 0.1
    part = tmp_path / ".train2014.zip.tmp"
    with start_python(program(server, tmp_path)) as process:
        wait_until(lambda: part.is_file() and part.stat().st_size > 100_000, process)
        process.send_signal(signal.SIGKILL)
    had = part.stat().st_size
    assert not (tmp_path / "train2014.zip").exists()
    server.slow = 0
    server.received.clear()
    download("coco2014", root=tmp_path, base_url=server.url)
    assert unpacked(tmp_path) == TRAIN | VAL | ANNOTATIONS
    assert server.requests("/zips/train2014.zip") == [f"bytes={had}-"]
    assert not list(tmp_path.glob(".*.tmp*"))


def test_a_kill_during_unpacking_loses_one_file(server: RangeServer, tmp_path: Path) -> None:
    slow = "import pipeline.datasets.unzip as u, time\nold = u.is_complete\nu.is_complete = lambda *a: (time.sleep(0.1), old(*a))[1]\n"
    with start_python(program(server, tmp_path, slow)) as process:
        wait_until(lambda: len(list(tmp_path.glob("train2014/*.jpg"))) > 5, process)
        process.send_signal(signal.SIGKILL)
    there = {path: path.stat().st_mtime_ns for path in tmp_path.glob("train2014/COCO*.jpg")}
    assert 5 < len(there) < 30
    summary = download("coco2014", root=tmp_path, base_url=server.url)
    assert unpacked(tmp_path) == TRAIN | VAL | ANNOTATIONS
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert summary.archives[1].written == 30 - len(there)


def test_ctrl_c_stops_between_two_chunks_and_the_next_run_resumes(server: RangeServer, tmp_path: Path) -> None:
    server.slow = 0.1
    part = tmp_path / ".train2014.zip.tmp"
    with start_python(program(server, tmp_path)) as process:
        wait_until(lambda: part.is_file() and part.stat().st_size > 100_000, process)
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.communicate(timeout=20)[1]  # which the command line reports
    server.slow = 0
    server.received.clear()
    download("coco2014", root=tmp_path, base_url=server.url)
    assert server.requests("/zips/train2014.zip") != [None]


def test_a_full_disk_stops_with_one_paragraph_and_the_next_run_resumes(server: RangeServer, tmp_path: Path) -> None:
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
    done = run_python(program(server, tmp_path, limit))
    assert done.stderr.splitlines()[-1].startswith(
        f"shards.errors.NoSpaceError: {tmp_path / 'train2014.zip'}: no space left (File too large). Free some"
    )
    download("coco2014", root=tmp_path, base_url=server.url)
    assert unpacked(tmp_path) == TRAIN | VAL | ANNOTATIONS


def test_archives_are_fetched_in_parallel(server: RangeServer, tmp_path: Path) -> None:
    server.barrier = threading.Barrier(len(ARCHIVES), timeout=5)
    download("coco2014", root=tmp_path, base_url=server.url)
    assert not server.barrier.broken
    assert server.counts() == dict.fromkeys(ARCHIVES, 1)


@pytest.mark.parametrize("content", ["{", '{"format_version": 9}', '{"format_version": 1, "files": [["a", 1]]}', '{"format_version": 1, "files": 3}'])
def test_a_damaged_receipt_is_ignored(server: RangeServer, tmp_path: Path, content: str) -> None:
    download("coco2014", root=tmp_path, parts=["val"], base_url=server.url)
    (tmp_path / ".val2014.zip.json").write_text(content)
    assert download("coco2014", root=tmp_path, parts=["val"], base_url=server.url).archives[0].written == 0


def test_the_command_lists_the_datasets_and_every_one_has_a_next_step() -> None:
    argument: Any = cli.commands["download"].params[0]
    assert isinstance(argument.type, click.Choice)
    assert list(argument.type.choices) == list(DATASETS)
    for dataset in DATASETS.values():
        assert dataset.next_steps.keys() <= dataset.parts.keys()
        for step in dataset.next_steps.values():
            assert step.command.split()[0] in cli.commands
            assert step.captions is None or f" --captions {{root}}/{step.captions} " in step.command


def test_an_unknown_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not known"):
        download("coco2099", root=tmp_path)
