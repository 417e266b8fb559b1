"""The benchmark runs, and what it compares is comparable; how fast anything is, is not tested."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.raw_vs_cached import main

TINY = "--synth-images 20 --backbone resnet18 --device cpu --batch-size 4 --num-workers 0 --raw-steps 1 --cached-steps 1 --repeats 2"


def test_three_ways_see_as_much_and_the_ratios_are_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = main([*TINY.split(), "--out", str(tmp_path)])

    assert [m["way"] for m in report["measurements"]] == ["A", "B", "C", "A", "B", "C"]
    assert {(m["images"], m["captions"]) for m in report["measurements"]} == {(4, 4)}
    assert set(report["times_faster"]) == {"B over A", "C over A", "C over B"}
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in report["times_faster"].values())
    assert all(epochs is None or epochs > 0 for epochs in report["break_even_epochs"].values())

    stem = tmp_path / f"raw_vs_cached-resnet18-{report['date']}"
    shown = capsys.readouterr()
    assert stem.with_suffix(".md").read_text() + "\n" == shown.out
    assert "repeat 2 of 2: C, 4 captions" in shown.err
    assert json.loads(stem.with_suffix(".json").read_text())["measurements"] == report["measurements"]


def test_images_need_their_captions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--images", "photos"])
    assert "--captions" in capsys.readouterr().err


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(SystemExit, match="no batch of this size in 90 captions"):
        main(["--synth-images", "20", "--batch-size", "91", "--backbone", "resnet18", "--device", "cpu"])
