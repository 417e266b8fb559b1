"""Does `caption` process thousands of images at the speed of the frozen network?

Two whole commands take turns (A B A B ...), with start-up, on the same images:

    caption          image files -> captions, with greedy decoding
    cache-features   the same images from shards, already resized -> features: almost only the network

The images are real ones, replicated as hard links. The network has random weights; the run was trained for a few steps.

    python -m benchmarks.bench_caption --out benchmarks/results
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, machine_line, table, write_report
from benchmarks.workload import run_command, say, shard_images
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.train import train


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of captioning.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/coco-cc"), help="folder with images/ and captions.json")
    parser.add_argument("--num-images", type=int, default=2000, help="images to caption in each measurement")
    parser.add_argument("--backbone", default="resnet152", help="the frozen network")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each command")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    return parser.parse_args(argv)


def measure(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    shard_images(s.images, work, s.num_images)
    images, shards, features, run = work / "source" / "images", work / "shards", work / "features", work / "run"
    cache = ("cache-features", "--shards", shards, "--out", features, "--backbone", s.backbone, "--weights", "random", "--device", s.device)
    run_command(*cache)
    train(out=run, data=DataConfig(features=features), settings={"epochs": 1}, max_steps=20, runtime=RuntimeConfig(device=s.device))
    seconds: dict[str, list[float]] = {"caption": [], "cache-features": []}
    for repeat in range(s.repeats):
        seconds["caption"].append(run_command("caption", "--run", run, images, "--device", s.device).seconds)
        (features / "train.h5").unlink()  # the weights are kept: calibrating random ones takes a pass of its own
        seconds["cache-features"].append(run_command(*cache).seconds)
        say(
            f"repeat {repeat + 1} of {s.repeats}: " + ", ".join(f"{name} {s.num_images / taken[-1]:,.1f} images/s" for name, taken in seconds.items())
        )
    rates = {name: [s.num_images / value for value in values] for name, values in seconds.items()}
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {"rates": rates, "medians": medians, "ratio": medians["caption"] / medians["cache-features"]}


def markdown(report: dict[str, Any]) -> str:
    rows = [[f"`{name}`", f"{report['medians'][name]:,.1f}", f"{min(r):,.1f} to {max(r):,.1f}"] for name, r in report["rates"].items()]
    settings = report["settings"]
    lines = [f"# {settings['num_images']:,} images captioned, {settings['backbone']}, {report['date']}", ""]
    lines += [
        *table(["Whole command", "images/s", "range"], rows),
        "",
        f"`caption` runs at {100 * report['ratio']:.0f}% of `cache-features`.",
        "",
    ]
    return "\n".join([*lines, machine_line(report["machine"]), ""])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it to ``--out``, and return the report."""
    settings = parse(argv)
    with tempfile.TemporaryDirectory(prefix="capstream-bench-") as folder:
        report = measure(settings, Path(folder))
    report |= {
        "date": date.today().isoformat(),
        "settings": {name: getattr(settings, name) for name in ("num_images", "backbone", "repeats", "device")},
        "machine": machine("torch", "torchvision", "numpy"),
    }
    write_report(settings.out, f"bench_caption-{settings.backbone}-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
