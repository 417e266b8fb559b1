import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.inspection import doctor as doctor_module
from pipeline.inspection.doctor import Check, doctor
from shards.dataset import DatasetFile
from tests import ROOT

Run = Callable[..., Result]
NAMES = ["Python", "Packages", "torch", "Precision", "Images", "Cores", "Disk", "Extras", "Java", "Data", "Shards", "Features", "Runs"]


def by_name(root: Path, runs: Path) -> dict[str, Check]:
    return {check.name: check for check in doctor(root=root, runs=runs).checks}


def test_in_an_empty_folder_every_check_is_ok_or_has_advice(tmp_path: Path, run_cli: Run) -> None:
    result = run_cli("doctor", "--root", tmp_path / "data", "--runs", tmp_path / "runs")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert len(lines) < 30
    assert lines[-1] == f"Next: python cli.py download coco2014 --root {tmp_path / 'data'}, or python cli.py demo"
    for line, following in itertools.pairwise(lines):
        if line.startswith("--"):
            assert following.startswith(" " * 14)
            assert following.strip()
    assert not (tmp_path / "data").exists()


def test_json_has_the_same_checks(tmp_path: Path, run_cli: Run) -> None:
    result = run_cli("doctor", "--json", "--root", tmp_path, "--runs", tmp_path)
    answers = json.loads(result.stdout)
    assert [answer["name"] for answer in answers if answer["name"] != "Formats"] == NAMES
    assert all(answer.keys() == {"name", "ok", "found", "advice"} and bool(answer["advice"]) is not answer["ok"] for answer in answers)


def test_data_is_found_and_the_next_command_uses_it(tmp_path: Path) -> None:
    root, runs = tmp_path / "data", tmp_path / "runs"

    def following() -> str:
        return doctor(root=root, runs=runs).next_step

    for name in ("train2014/a.jpg", "train2014/b.jpg", "annotations/captions_train2014.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    assert by_name(root, runs)["Data"].found == "train2014 (2 files), captions_train2014.json"
    captions = f"{root}/annotations/captions_train2014.json"
    assert following() == f"shard --images {root}/train2014 --captions {captions} --out {root}/shards --split train"
    (root / "mine").mkdir()
    splits = {"train": {"shards": 1, "images": 82783}, "val": {"shards": 1, "images": 7}}
    DatasetFile(config={"resize": {"size": 256, "mode": "squash", "filter": "lanczos"}, "language": "en"}, splits=splits).write(root / "mine")
    assert by_name(root, runs)["Shards"].found == f"{root}/mine (train 82,783, val 7)"
    assert following() == f"cache-features --shards {root}/mine --out {root}/features"
    (root / "cached").mkdir()
    (root / "cached/train.h5").write_bytes(bytes(3_000_000))
    assert by_name(root, runs)["Features"].found == f"{root}/cached/train.h5 (3 MB)"
    assert following() == f"train --features {root}/cached --out {runs}/first"
    (runs / "first").mkdir(parents=True)
    (runs / "first/config.json").write_text("{}")
    assert not by_name(root, runs)["Runs"].ok
    (runs / "first/latest.json").write_text("{}")
    assert by_name(root, runs)["Runs"].found == f"{runs}/first (1 with a checkpoint)"
    assert following() == f"caption --run {runs}/first PHOTO.jpg"
    (runs / "earlier").mkdir()
    (runs / "earlier/config.json").write_text("{}")
    assert by_name(root, runs)["Runs"].found == f"{runs}/earlier, {runs}/first (1 with a checkpoint)"
    assert following() == f"caption --run {runs}/first PHOTO.jpg"


@pytest.mark.parametrize(
    ("files", "step"),
    [
        (
            ["val2014/a.jpg", "annotations/captions_train2014.json", "annotations/captions_val2014.json"],
            "shard --images {root}/val2014 --captions {root}/annotations/captions_val2014.json --out {root}/shards --split val",
        ),
        (["train2014/a.jpg", "annotations/captions_val2014.json"], "download coco2014 --root {root}, or python cli.py demo"),
        (
            ["flickr8k/Flicker8k_Dataset/a.jpg", "flickr8k/Flickr8k.token.txt"],
            "shard --images {root}/flickr8k/Flicker8k_Dataset --captions {root}/flickr8k/Flickr8k.token.txt --out {root}/flickr8k-shards",
        ),
        (
            ["train2014/a.jpg", "val2014/a.jpg", "karpathy/dataset_coco.json"],
            "shard --images {root} --captions {root}/karpathy/dataset_coco.json --out {root}/shards",
        ),
        (["flickr8k/Flickr8k.token.txt"], "download coco2014 --root {root}, or python cli.py demo"),
    ],
)
def test_the_next_step_uses_only_existing_files(tmp_path: Path, files: list[str], step: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert doctor(root=tmp_path, runs=tmp_path / "runs").next_step == step.format(root=tmp_path)


def test_flickr8k_needs_images_and_captions(tmp_path: Path) -> None:
    (tmp_path / "flickr8k/Flicker8k_Dataset").mkdir(parents=True)
    (tmp_path / "flickr8k/Flicker8k_Dataset/a.jpg").write_text("")
    assert not by_name(tmp_path, tmp_path)["Data"].ok
    (tmp_path / "flickr8k/Flickr8k.token.txt").write_text("")
    check = by_name(tmp_path, tmp_path)["Data"]
    assert (check.ok, check.found) == (True, "flickr8k/Flicker8k_Dataset (1 files), Flickr8k.token.txt")


@pytest.mark.parametrize("content", ["{", '{"format_version": 9}', '{"format_version": 1, "config": 3}'])
def test_a_damaged_dataset_is_a_failed_check_and_no_crash(tmp_path: Path, content: str) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/dataset.json").write_text(content)
    check = by_name(tmp_path, tmp_path)["Shards"]
    assert not check.ok
    assert "check failed" in check.found
    assert str(tmp_path / "shards/dataset.json") in check.found


def test_odd_paths_do_not_crash(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for odd in (tmp_path / "file", tmp_path / "none/deeper", tmp_path / ("x" * 300), Path("/proc/self/mem")):
        assert {check.name for check in doctor(root=odd, runs=odd).checks} >= set(NAMES)


def test_an_exception_in_a_check_is_its_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> Iterator[Check]:
        yield Check(name="Half", ok=True, found="this much")
        raise RuntimeError("a driver that does not answer\nwith details")

    monkeypatch.setattr(doctor_module, "_torch", broken)
    found = by_name(tmp_path, tmp_path)
    assert found["Half"].ok
    assert found["torch"].found == "check failed: RuntimeError: a driver that does not answer"


@pytest.mark.parametrize(("package", "asked"), [("torch", {"torch"}), ("numpy", {"torch", "Shards"}), ("PIL", {"Images"})])
def test_a_package_that_cannot_be_imported_fails_only_the_checks_that_need_it(tmp_path: Path, package: str, asked: set[str]) -> None:
    """A real failed import, by a module that shadows the installed one."""
    (tmp_path / f"{package}.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    command = [sys.executable, str(ROOT / "cli.py"), "doctor", "--json", "--root", "none", "--runs", "none"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    answers = {answer["name"]: answer["found"] for answer in json.loads(done.stdout)}
    failed = {name for name, found in answers.items() if found == "check failed: OSError: libcudart.so.13: cannot open shared object file"}
    assert asked <= failed
    assert {"Python", "Packages", "Cores", "Disk", "Java", "Data"} & failed <= {"Java"}


def test_a_missing_java_is_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    check = by_name(tmp_path, tmp_path)["Java"]
    assert (check.ok, check.found) == (False, "none")
    assert check.advice.startswith("Optional: install a Java runtime")
