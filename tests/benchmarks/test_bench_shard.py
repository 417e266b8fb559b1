"""The benchmark runs on a few drawn images; speed is not tested."""

import json
from pathlib import Path

import pytest

from benchmarks.bench_shard import main


def test_every_way_is_measured_and_compared_in_one_run(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--num-images", "60", "--peer-images", "10", "--repeats", "1", "--shard-size", "30", "--out", str(tmp_path / "results")]
    report = main(["--images", str(dataset), *options])
    assert set(report["rates"]) == {"A, 1", "C, 1", "C, 2", "ours, 1", "ours, 2"}
    assert all(rate > 0 for rates in report["rates"].values() for rate in rates)
    medians = report["medians"]
    assert report["ratios"]["ours, 2 / A, 1"] == medians["ours, 2"] / medians["A, 1"]
    (written,) = (tmp_path / "results").glob("bench_shard-*.json")
    assert json.loads(written.read_text())["ratios"] == report["ratios"]
    assert "| ours, 2 / C, 2 |" in capsys.readouterr().out


def test_memory_is_measured_for_each_number_of_images(dataset: Path) -> None:
    report = main(["--images", str(dataset), "--memory", "20", "60"])
    assert [row["images"] for row in report["sharding"]] == [20, 60]
    assert all(row["peak_bytes"] > 10_000_000 for row in report["sharding"] + report["planning"])
