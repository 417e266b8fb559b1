"""Do time per image and memory stay constant with 4 and 16 times as many images?

The whole commands of every stage are measured, with one and with two worker processes where a stage has workers. Every command has a start-up
time (Python, torch, a network). What must stay constant is therefore the time per additional image: the difference in seconds between two
sizes, divided by the difference in images. Memory is the peak over all processes of a command together, shared pages counted once, and the
peak of its largest process. The suite runs this: ``--only growth``.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import table
from benchmarks.workload import replicate, run_command, say, write_weights
from shards.dataset import open_split

# Stages with --workers; the others run in one process.
IN_PROCESSES = ("shard", "cache-features")


def commands(s: argparse.Namespace, data: Path, made: Path, workers: int) -> dict[str, list[object]]:
    """The arguments of each stage, in order."""
    shards, features, vocabulary, run = made / "shards", made / "features", made / "vocab.json", made / "run"
    device = ["--device", s.device]
    return {
        "shard": ["shard", "--images", data / "images", "--captions", data / "captions.json", "--out", shards, "--workers", workers],
        "vocab": ["vocab", "--shards", shards, "--out", vocabulary, "--min-count", 1],
        "cache-features": [
            *("cache-features", "--shards", shards, "--out", features, "--workers", workers, *device),
            *("--backbone", s.growth_backbone, "--weights", data.parent / "weights.safetensors"),
        ],
        "train": ["train", "--features", features, "--vocab", vocabulary, "--out", run, "--epochs", 1, *device],
        "evaluate": ["evaluate", "--run", run, "--features", features, "--split", "train", "--no-java", *device],
    }


def measure(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    """A row for each size, stage and number of workers. Sizes take turns, so that a slow period of the machine affects all of them."""
    sizes = [s.growth_images * times for times in s.growth_times]
    for images in sizes:
        replicate(s.images, work / str(images), images)
    prepare_weights(s, work, sizes[0])
    rows: list[dict[str, Any]] = []
    for workers in s.growth_workers:
        made = {images: work / f"{images}-{workers}" for images in sizes}
        for stage in commands(s, work, work, workers):
            if workers != s.growth_workers[0] and stage not in IN_PROCESSES:
                continue
            for images in sizes:
                made[images].mkdir(exist_ok=True)
                usage = run_command(*commands(s, work / str(images), made[images], workers)[stage], watch=True)
                row = {"stage": stage, "workers": workers if stage in IN_PROCESSES else None, "images": images, "seconds": usage.seconds}
                rows.append(row | {"peak_bytes": usage.peak_bytes, "together_bytes": usage.together_bytes})
                say(f"{stage}, {images} images, {workers} workers: {usage.seconds:.1f} s, {usage.peak_bytes / 1e6:.0f} MB")
    return {"rows": rows, "backbone": s.growth_backbone, "stages": summary(rows)}


def prepare_weights(s: argparse.Namespace, work: Path, images: int) -> None:
    data = work / str(images)
    run_command("shard", "--images", data / "images", "--captions", data / "captions.json", "--out", work / "first")
    write_weights(open_split(work / "first", "train"), s.growth_backbone, work / "weights.safetensors")


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each stage and number of workers: milliseconds per additional image between sizes, and the memory for each size."""
    found = []
    for (stage, workers), group in itertools.groupby(rows, key=lambda row: (row["stage"], row["workers"])):
        own = sorted(group, key=lambda row: int(row["images"]))
        more = [1e3 * (b["seconds"] - a["seconds"]) / (b["images"] - a["images"]) for a, b in itertools.pairwise(own)]
        memory = [row["together_bytes"] or row["peak_bytes"] for row in own]
        found.append(
            {
                "name": stage + ("" if workers is None else ", 1 worker" if workers == 1 else f", {workers} workers"),
                "stage": stage,
                "workers": workers,
                "images": [row["images"] for row in own],
                "seconds": [row["seconds"] for row in own],
                "ms_per_additional_image": more,
                "memory_bytes": memory,
                "bytes_per_additional_image": (memory[-1] - memory[0]) / (own[-1]["images"] - own[0]["images"]),
            }
        )
    return found


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The section as Markdown."""
    first = report["stages"][0]["images"]
    rows = [
        [
            stage["name"],
            *(f"{seconds:.1f}" for seconds in stage["seconds"]),
            *(f"{more:.2f}" for more in stage["ms_per_additional_image"]),
            *(f"{size / 1e6:,.0f}" for size in stage["memory_bytes"]),
            f"{stage['bytes_per_additional_image'] / 1e3:+,.1f}",
        ]
        for stage in report["stages"]
    ]
    header = [
        "Stage",
        *(f"s for {images:,}" for images in first),
        *(f"ms per additional image, {a:,} to {b:,}" for a, b in itertools.pairwise(first)),
        *(f"MB for {images:,}" for images in first),
        "KB per additional image",
    ]
    yield f"One measurement each; the network of `cache-features` is {report['backbone']}. Memory is that of all processes of a command together."
    yield from ("", *table(header, rows))
