"""The whole way, as a user types it: on real photographs, and on the built-in dataset."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pipeline.demo import DemoConfig, demo

TINY = ("--embedding-dim", 32, "--hidden-dim", 64, "--lr", 0.01, "--batch-size", 16)
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
    assert "BLEU-4" in "\n".join(result.table())


@pytest.mark.full
@pytest.mark.parametrize(("language", "stop", "some_words"), [("ko", ".", {"빨간", "별", "￭가"}), ("zh", "。", {"红色", "圆形", "的"})])
def test_captions_in_other_languages_go_the_whole_way(
    language: str, stop: str, some_words: set[str], run_cli: Callable[..., Result], tmp_path: Path
) -> None:
    d = tmp_path
    shard = ["shard", "--images", d / "synth/images", "--out", d / "shards", "--size", 64, "--language", language, "--workers", 1]
    steps = [
        ["synth", d / "synth", "--images", 40, "--language", language, "--workers", 1],
        [*shard, "--captions", d / "synth/captions_train.json", "--split", "train"],
        [*shard, "--captions", d / "synth/captions_val.json", "--split", "val"],
        ["vocab", "--shards", d / "shards", "--min-count", 1, "--out", d / "vocab.json"],
        ["cache-features", "--shards", d / "shards", "--out", d / "features", "--backbone", "resnet18", "--weights", "random", "--precision", "fp32"],
        ["train", "--features", d / "features", "--vocab", d / "vocab.json", "--out", d / "run", *TINY, "--epochs", 8],
        ["caption", "--run", d / "run", "--show", "--out", d / "captions.png", *(d / f"synth/images/scene_00000{number}.jpg" for number in range(2))],
        ["evaluate", "--run", d / "run", "--features", d / "features"],
        ["report", d / "run", "--shards", d / "shards", "--out", d / "report.html"],
    ]
    for step in steps:
        result = run_cli(*step)
        assert result.exit_code == 0, result.output
    written = json.loads((d / "vocab.json").read_text())
    assert written["language"] == language
    assert some_words <= set(written["words"])
    scores = json.loads((d / "run/val.scores.json").read_text())
    captions = [image["caption"] for image in scores["images"]]
    assert all(caption.endswith(stop) and "￭" not in caption and (" " in caption) == (language == "ko") for caption in captions)
    assert scores["made_by"]["language"] == language
    assert scores["scores"]["bleu_1"]["value"] > 0.3
    assert not scores["scores"].keys() & {"meteor", "spice", "bad_endings"}
    assert any("METEOR" in note for note in scores["notes"])
    assert scores["made_by"]["tokenizer"].endswith("without punctuation")
    # The result file is scored as the run was, given the language
    options = ["--captions", d / "run/val.results.json", "--references", d / "synth/captions_val.json", "--out", d / "again.json"]
    again = run_cli("evaluate", *options, "--language", language)
    assert again.exit_code == 0, again.output
    shared = scores["scores"].keys() - {"novel"}
    assert {name: json.loads((d / "again.json").read_text())["scores"][name] for name in shared} == {name: scores["scores"][name] for name in shared}
    assert "give --language" in run_cli("evaluate", *options).stderr
