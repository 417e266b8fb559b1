"""The benchmarks of training run on a few drawn images; speed is not tested."""

import json
from pathlib import Path

import pytest

from benchmarks import bench_precisions, bench_train, training_ways
from benchmarks.workload import Usage

pytestmark = pytest.mark.usefixtures("forked")

TINY = "--backbone squeezenet1_1 --feature-images 60 --feature-dim 16 --batch-size 8 --raw-steps 1 --cached-steps 10 --loading-batches 2"
WAYS = ["ours cached", "tutorial decoder"]  # test_run.py measures the others


def test_ways_are_measured_and_compared_in_one_run(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY.split(), "--images", str(dataset), "--num-images", "36", "--repeats", "1", "--device", "cpu", "--out", str(tmp_path)]
    report = bench_train.main([*options, "--ways", *WAYS])
    assert set(report["rates"]) == set(WAYS)
    assert all(rate > 0 for rates in report["rates"].values() for rate in rates)
    medians = report["medians"]
    assert report["ratios"]["ours cached / tutorial decoder"] == medians["ours cached"] / medians["tutorial decoder"]
    assert report["epoch_seconds"]["ours cached"] == pytest.approx(414_113 / medians["ours cached"])
    assert 0 <= report["data_wait"]["ours cached"] <= 1
    (written,) = tmp_path.glob("bench_train-squeezenet1_1-*.json")
    assert json.loads(written.read_text())["ratios"] == report["ratios"]
    assert "| ours cached / tutorial decoder |" in capsys.readouterr().out


def test_loss_curves_of_two_precisions_are_compared(data: Path, tmp_path: Path) -> None:
    options = [
        "--data",
        str(data / "flickr8k-features"),
        "--num-images",
        "16",
        "--epochs",
        "1",
        "--seeds",
        "2",
        "--batch-size",
        "16",
        "--device",
        "cpu",
    ]
    report = bench_precisions.main([*options, "--out", str(tmp_path)])
    assert [(t["precision"], t["seed"]) for t in report["trainings"]] == [("fp32", 0), ("bf16", 0), ("fp32", 1), ("bf16", 1)]
    assert 0 < report["distances"]["fp32 and bf16, seed 0"] < report["distances"]["fp32, seeds 0 and 1"]
    assert len(list(tmp_path.glob("bench_precisions-*"))) == 2


def test_the_cache_pays_off_by_the_time_that_each_epoch_saves() -> None:
    # An epoch saves 900 s or 400 s. A way that is not slower never lets it pay off.
    paid = bench_train.break_even({"ours cached": 100.0, "tutorial raw": 1000.0, "ours raw": 500.0}, 8278.3)
    assert paid == pytest.approx({"tutorial raw": 9.198111, "ours raw": 20.69575})
    assert bench_train.break_even({"ours cached": 100.0, "ours raw": 90.0}, 8278.3) == {}


def test_start_up_is_the_time_that_the_printed_rate_does_not_explain() -> None:
    output = "out/some.h5: 3000 images, 2048 features each, fp32 (1,000.0 images/s).\nNext: ..."
    found = training_ways.caching_rates(Usage(seconds=15.0, peak_bytes=0, output=output), 3000)
    assert found == pytest.approx(
        {"images_per_second": 200.0, "start_up_seconds": 12.0, "steady_images_per_second": 1000.0, "coco_seconds": 12 + 82.783}
    )
