"""Every section of the suite runs on a few drawn images; speed is not tested."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_growth, bench_peers, gpu, peer_ways, peers, run
from benchmarks.bench_peers import dropped, in_page_cache
from benchmarks.workload import ROOT, memory_of_tree, run_python, take_turns

TINY = (
    "--repeats 1 --backbone squeezenet1_1 --batch-size 8 --num-images 36 --feature-images 60 --feature-dim 512 --raw-steps 1 --cached-steps 10 "
    "--loading-batches 2 --shard-images 20 --train-steps 2 --decode-images 8 --peer-images 30 --peer-features 40 "
    "--growth-images 8 --growth-times 1 3 --growth-workers 2"
)


def suite(dataset: Path, out: Path, captions: Path, *options: str) -> dict[str, Any]:
    return run.main([*TINY.split(), "--images", str(dataset), "--captions", str(captions), "--out", str(out), *options])


@pytest.fixture
def captions(dataset: Path) -> Path:
    return dataset / "captions.json"


@pytest.mark.full
@pytest.mark.usefixtures("forked")
def test_raw_cached_and_limits_are_measured_in_the_same_turns_and_reported_with_plots(
    dataset: Path, captions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = suite(dataset, tmp_path / "results", captions, "--only", "raw-cached", "limits")
    found, limits = report["raw-cached"], report["limits"]
    assert set(found["rates"]) == {"tutorial raw", "ours raw", "ours cached"}
    assert all(rate > 0 for rates in (*found["rates"].values(), *found["caching"].values()) for rate in rates)
    assert found["disk"]["feature file"]["images"] == 60
    assert found["disk"]["shards"]["bytes"] > found["disk"]["folder of JPEGs"]["bytes"] > 36 * 1000
    assert all(stage["share"] > 0 for stage in limits["stages"])
    (cached,) = (stage for stage in limits["stages"] if stage["stage"] == "`train --features`")
    assert cached["rates"] == found["rates"]["ours cached"]  # one measurement, reported in both sections
    assert limits["machine"]["flop_per_image"] > 1e8
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    stem = f"suite-raw-cached-limits-{report['date']}"
    assert names == [f"{stem}-limits.png", f"{stem}-raw-cached.png", f"{stem}.json", f"{stem}.md"]
    text = (tmp_path / "results" / f"{stem}.md").read_text()
    assert "Not measured" in text.split("## The GPU")[1]
    assert "--only raw-cached limits" in text
    capsys.readouterr()
    run.main(["--table", str(tmp_path / "results" / f"{stem}.json")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].split(":")[0].strip() for line in lines[2:]] == ["The tutorial", "Raw shards", "Cached features"]


@pytest.mark.full
@pytest.mark.parametrize("features", [("h5py",), bench_peers.FEATURES], ids=["one", "all"])
def test_peers_are_compared_with_ours_and_those_that_are_missing_or_fail_are_named(
    dataset: Path, captions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...]
) -> None:
    monkeypatch.setattr(bench_peers, "FEATURES", features)
    monkeypatch.setattr(peers, "FOLDER", tmp_path / "none")
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: no such thing' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(bench_peers, "interpreter", lambda name: str(broken) if name == "ffcv" else peers.interpreter(name))
    found = suite(dataset, tmp_path / "out", captions, "--only", "peers", "--peers", "webdataset", "litdata", "ffcv")["peers"]
    assert set(found["writing"]["warm"]) == {"ours", "webdataset"}
    assert set(found["loading"]["warm"]) == {"ours", "DataLoader", "webdataset"}
    assert set(found["features"]["warm"]) == {"ours", *features}
    assert found["not_measured"] == {
        "litdata": "not installed: it has no environment (`make peers`)",
        "ffcv, writing": "failed: ImportError: no such thing",
        "ffcv, loading": "failed: ImportError: no such thing",
    }
    (text,) = (tmp_path / "out").glob("suite-peers-*.md")
    assert "- litdata: not installed" in text.read_text()


@pytest.mark.full
@pytest.mark.usefixtures("forked")
def test_growth_reports_time_and_memory_of_every_stage(dataset: Path, captions: Path, tmp_path: Path) -> None:
    found = suite(dataset, tmp_path, captions, "--only", "growth")["growth"]
    stages = [(stage["stage"], stage["workers"]) for stage in found["stages"]]
    assert stages == [("shard", 2), ("vocab", None), ("cache-features", 2), ("train", None), ("evaluate", None)]
    assert all(stage["images"] == [8, 24] for stage in found["stages"])
    assert all(row["peak_bytes"] > 30e6 and row["together_bytes"] > 10e6 for row in found["rows"])
    (written,) = tmp_path.glob("suite-growth-*.json")
    content = json.loads(written.read_text())
    assert content["growth"] == found
    assert content["command"].startswith("python -m benchmarks.run --repeats 1")
    assert content["settings"]["growth_images"] == 8
    assert "torch" in content["machine"]


def test_time_and_memory_per_additional_image_are_differences() -> None:
    rows = [
        {"stage": "shard", "workers": 1, "images": images, "seconds": seconds, "peak_bytes": 7, "together_bytes": memory}
        for images, seconds, memory in ((10, 2.0, 1000), (40, 5.0, 1000), (160, 11.0, 2500))
    ]
    (found,) = bench_growth.summary(rows)
    assert found["ms_per_additional_image"] == [100.0, 50.0]
    assert found["bytes_per_additional_image"] == 10.0


def test_a_report_does_not_show_where_files_are_kept() -> None:
    assert [run.relative_path(argument) for argument in ("--captions", str(ROOT / "docs" / "a.json"), "b.json", "3")] == [
        *("--captions", "docs/a.json", "b.json", "3")
    ]


@pytest.mark.parametrize("command", [["benchmarks/run.py"], ["-m", "benchmarks.run"]], ids=["script", "module"])
def test_the_suite_starts_as_a_script_and_as_a_module_and_names_its_sections(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "raw-cached, limits, peers, growth" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--only", "nothing"], "invalid choice: 'nothing'"), (["--images", "/nowhere"], "holds no captions.json")],
    ids=["section", "images"],
)
def test_wrong_usage_is_reported(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(options)
    assert message in capsys.readouterr().err


def test_measurements_take_turns() -> None:
    order: list[str] = []

    def measure(name: str) -> int:
        order.append(name)
        return len(order)

    assert take_turns({name: partial(measure, name) for name in "AB"}, 2) == {"A": [1, 3], "B": [2, 4]}
    assert order == ["A", "B", "A", "B"]


def test_memory_of_a_process_includes_its_children() -> None:
    held = "x = bytearray(80_000_000); print(1, flush=True); input()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{held}'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert memory_of_tree(process.pid) > 80_000_000
        process.communicate(b"\n")
    assert memory_of_tree(process.pid) == 0


def test_a_dropped_file_is_not_in_the_page_cache_until_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(os.urandom(1 << 20))
    assert in_page_cache(tmp_path / "x")
    if not dropped(tmp_path):
        pytest.skip("this file system keeps its pages")
    assert not in_page_cache(tmp_path / "x")
    (tmp_path / "x").read_bytes()
    assert in_page_cache(tmp_path / "x")


def test_the_memory_of_a_command_is_its_own_and_not_that_of_the_benchmark() -> None:
    ballast = bytearray(os.urandom(1 << 20)) * 300
    usage = run_python("-S", "-c", "x = bytearray(b'1') * 60_000_000", watch=True)
    assert 60e6 < usage.peak_bytes < 120e6 < len(ballast)


def test_a_gpu_is_busy_between_its_first_and_its_last_kernel() -> None:
    assert gpu.busy(gpu.parsed("0\n0\n50\n[N/A]\n0\n100\n0\n1")) == pytest.approx((50 + 0 + 100 + 0 + 1) / 5 / 100)
    assert gpu.busy(gpu.parsed("0\n0\n")) is None


def test_batches_hold_every_caption_of_their_images_padded() -> None:
    import numpy as np

    images, tokens = peer_ways.collate([(np.zeros(2), [[1, 2], [3]]), (np.ones(2), [[4, 5, 6]])])
    assert images.tolist() == [[0, 0], [1, 1]]
    assert tokens.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]


def test_the_reason_for_a_missing_peer_is_pips_own_error() -> None:
    assert peers.reason("WARNING: x\nERROR: No matching distribution found for y\nlast") == "ERROR: No matching distribution found for y"
    assert peers.reason("Traceback\n  File x\nModuleNotFoundError: No module named 'PIL'\n") == "ModuleNotFoundError: No module named 'PIL'"


def test_an_unknown_peer_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        peers.main(["nobody"])
    assert "nobody: no such tool" in capsys.readouterr().err
