"""The whole way, as a user types it: on real photographs, and on the built-in dataset."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.demo import DemoConfig, demo

WEIGHTS = "mobilenet_v2_tf2ptq-2d2ba5d1.pth"


@pytest.mark.full
def test_real_photographs_with_real_weights_go_the_whole_way_and_are_learned(data: Path, run_cli: Callable[..., Result], tmp_path: Path) -> None:
    source, d = data / "coco-cc", tmp_path
    steps = [
        ["shard", "--images", source / "images", "--captions", source / "captions.json", "--out", d / "shards"],
        ["cache-features", "--shards", d / "shards", "--out", d / "features", "--backbone", "mobilenet_v2", "--weights", data / "weights" / WEIGHTS],
        ["train", "--features", d / "features", "--out", d / "run", "--min-count", 1, "--epochs", 40, "--lr", 0.002, "--batch-size", 64],
        ["evaluate", "--run", d / "run", "--features", d / "features", "--split", "train", "--out", d / "scores.json"],
        ["caption", "--run", d / "run", *sorted((source / "images").iterdir())[:3]],
    ]
    for step in steps:
        result = run_cli(*step)
        assert result.exit_code == 0, result.output
    assert "99 images with 495 captions" in run_cli(*steps[0]).output
    scores = json.loads((d / "scores.json").read_text())
    assert len(scores["images"]) == 99
    assert scores["scores"]["bleu_4"]["value"] > 0.5
    # The photographs themselves are captioned like their stored copies, but for the rounding of a JPEG.
    by_image = {entry["image_id"]: entry["caption"] for entry in scores["images"]}
    lines = [line.split(": ", 1) for line in result.output.splitlines() if line.startswith(str(source))]
    assert len(lines) == 3
    assert sum(by_image[int(Path(path).stem)] == caption for path, caption in lines) >= 2


@pytest.mark.full
def test_the_demos_model_learns_what_is_in_the_drawings(tmp_path: Path) -> None:
    said: list[str] = []
    result = demo(DemoConfig(out=tmp_path / "demo", workers=2, device="cpu"), said.append)
    assert len(said) == 7
    assert result.scores.metrics["bleu_4"] >= 0.6
    assert result.scores.true_pairs >= 0.7
    assert result.control.metrics["bleu_4"] < 0.5 * result.scores.metrics["bleu_4"]
    assert result.control.true_pairs < 0.5 * result.scores.true_pairs
    assert result.picture.stat().st_size > 10_000
    assert "BLEU-4" in result.table()
