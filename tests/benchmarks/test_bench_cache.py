"""The benchmarks of caching run on a few drawn images; speed is not tested."""

import json
from pathlib import Path

import pytest

from benchmarks import bench_cache, bench_views

pytestmark = pytest.mark.usefixtures("forked")

OPTIONS = ["--backbone", "squeezenet1_1", "--batch-size", "4", "--batches", "2", "--repeats", "1", "--device", "cpu"]


def test_ours_is_compared_with_the_tutorials_way_and_the_limit_in_one_run(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--images", str(dataset), "--num-images", "40", "--precision", "fp32", "--out", str(tmp_path / "results")]
    report = bench_cache.main([*OPTIONS, *options])
    assert all(rate > 0 for rates in report["rates"].values() for rate in rates)
    assert report["ratios"]["ours / B"] == report["medians"]["ours"] / report["medians"]["B"]
    (written,) = (tmp_path / "results").glob("bench_cache-squeezenet1_1-*.json")
    assert json.loads(written.read_text())["ratios"] == report["ratios"]
    assert "| ours / A |" in capsys.readouterr().out


@pytest.mark.full
def test_memory_and_disk_of_views_are_measured(dataset: Path) -> None:
    report = bench_cache.main([*OPTIONS, "--images", str(dataset), "--memory", "20"])
    assert [row["images"] for row in report["memory"]] == [20]
    assert all(row["peak_bytes"] > 100_000_000 for row in report["memory"])
    views = bench_cache.main([*OPTIONS, "--images", str(dataset), "--num-images", "20", "--views"])["views"]
    assert {name: row["feature_bytes"] for name, row in views.items()} == {
        "center": 20 * 512 * 2,
        "flip": 20 * 512 * 4,
        "random:4": 20 * 512 * 10,
        "ten-crop": 20 * 512 * 20,
    }


def test_the_center_crop_and_the_mean_of_views_are_compared(tmp_path: Path) -> None:
    options = ["--num-images", "30", "--backbone", "squeezenet1_1", "--views", "center", "flip", "--seeds", "1", "--epochs", "1"]
    report = bench_views.main([*options, "--out", str(tmp_path)])
    assert [row["views"] for row in report["rows"]] == ["center", "flip"]
    assert report["rows"][0]["center"] == report["rows"][0]["mean"]
    assert len(list(tmp_path.glob("bench_views-*"))) == 2
