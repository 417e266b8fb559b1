"""The benchmark of captioning runs on a few drawn images; speed is not tested."""

from pathlib import Path

import pytest

from benchmarks import bench_caption

pytestmark = pytest.mark.usefixtures("forked")


def test_whole_commands_are_compared_in_turns(dataset: Path, tmp_path: Path) -> None:
    options = ["--images", str(dataset), "--num-images", "20", "--backbone", "squeezenet1_1", "--repeats", "1", "--device", "cpu"]
    report = bench_caption.main([*options, "--out", str(tmp_path)])
    assert report["ratio"] == report["medians"]["caption"] / report["medians"]["cache-features"] > 0
    assert len(list(tmp_path.glob("bench_caption-squeezenet1_1-*"))) == 2
