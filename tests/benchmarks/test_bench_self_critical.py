"""The benchmark of self-critical training runs on little data; speed is not tested."""

import json
from pathlib import Path

from benchmarks import bench_self_critical


def test_scoring_is_a_part_of_a_step_and_both_kinds_of_step_are_timed_in_turn(data: Path, tmp_path: Path) -> None:
    captions = data / "coco-captions" / "captions_val2017.json"
    options = ["--batch-size", "4", "--samples", "2", "--train-steps", "2", "--repeats", "2", "--device", "cpu"]
    report = bench_self_critical.main([*options, "--captions", str(captions), "--out", str(tmp_path)])
    assert 0 < report["scoring_share"] < 1
    assert {name: len(values) for name, values in report["seconds"].items()} == {"self-critical": 2, "scoring": 2, "cross-entropy": 2}
    (written,) = tmp_path.glob("bench_self_critical-*.json")
    assert json.loads(written.read_text())["medians"] == report["medians"]
