"""The benchmark of CIDEr-D runs on little data; speed is not tested."""

import json
from pathlib import Path

from benchmarks.bench_cider_d import main


def test_both_ways_score_the_same_candidates_alike_in_the_file_and_in_an_enlarged_corpus(tmp_path: Path) -> None:
    annotations = [{"image_id": i // 3, "caption": f"a {('red', 'small', 'wet')[i % 3]} dog number {i % 5} runs."} for i in range(30)]
    (tmp_path / "c.json").write_text(json.dumps({"annotations": annotations}))
    options = ["--num-images", "40", "--batch-images", "6", "--samples", "2", "--repeats", "2"]
    report = main([*options, "--captions", str(tmp_path / "c.json"), "--out", str(tmp_path)])
    assert [(found["images"], found["captions"]) for found in report["corpora"]] == [(10, 30), (40, 180)]
    for found in report["corpora"]:
        assert found["largest difference"] < 1e-9
        assert found["mean score"] > 0.1
        assert found["ratio"] == found["medians"]["pycocoevalcap"] / found["medians"]["ours"]
    (written,) = tmp_path.glob("bench_cider_d-*.json")
    assert json.loads(written.read_text())["corpora"] == report["corpora"]
