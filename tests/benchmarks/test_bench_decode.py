"""The benchmark of decoding runs on little data; speed is not tested."""

import json
from pathlib import Path

from benchmarks import bench_decode


def test_ours_and_the_loop_give_the_same_captions_and_are_compared_in_one_run(data: Path, tmp_path: Path) -> None:
    options = ["--num-images", "12", "--loop-images", "6", "--batch-size", "5", "--train-steps", "2", "--repeats", "1", "--device", "cpu"]
    captions = data / "coco-captions" / "captions_val2017.json"
    report = bench_decode.main([*options, "--captions", str(captions), "--out", str(tmp_path)])
    assert report["same_captions"] == {"greedy": 1.0, "beam 5": 1.0}
    medians = report["medians"]
    assert report["ratios"]["beam 5"] == medians["ours, beam 5"] / medians["per image, beam 5"]
    (written,) = tmp_path.glob("bench_decode-*.json")
    assert json.loads(written.read_text())["ratios"] == report["ratios"]
