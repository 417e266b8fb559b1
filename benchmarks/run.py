"""The benchmark suite: measures with one command what matters for the choice of a tool.

    python -m benchmarks.run                      all sections, into benchmarks/results: `make bench`
    python -m benchmarks.run --only limits peers  some sections
    python -m benchmarks.run --device cuda        the same on a GPU, with more steps
    python -m benchmarks.run --table REPORT.json  the README's table, from a report

Sections:

    raw-cached   training the tutorial's way, from our shards and from our cache; when the cache pays off; disk space
    limits       each stage compared with its limit
    peers        other tools on the same files (`make peers` installs them; missing ones are named)
    growth       time per image and memory with 1, 4 and 16 times as many images

raw-cached and limits share their measurements, which take turns (A B C ..., A B C ...), each in its own process. Figures are medians with
their spread. The two sides of a ratio are always from the same run. The page cache is warm unless a figure is marked as cold.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python benchmarks/run.py`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks import bench_growth, bench_limits, bench_peers, bench_train, gpu, plots, training_ways
from benchmarks.bench_decode import CAPTIONS
from benchmarks.machine import device_name, machine, machine_line, table, write_report
from benchmarks.peers import PEERS
from benchmarks.workload import ROOT, say, take_turns
from pipeline.execution.devices import pick_device
from shards.errors import CapstreamError

SECTIONS = {
    "raw-cached": "Raw and cached training",
    "limits": "Each stage compared with its limit",
    "peers": "Other tools on the same files",
    "growth": "Growth with the number of images",
}
RAW_CACHED = ("tutorial raw", "ours raw", "ours cached", "ours caching")
# A step of the tutorial takes half a minute on two cores, and a few milliseconds on a GPU.
SIZES = {
    "cpu": {
        "num_images": 300,
        "cache_images": 128,
        "raw_steps": 1,
        "raw_warm_up": 0,
        "cached_steps": 20,
        "loading_batches": 40,
        "shard_images": 1000,
    },
    "cuda": {
        **{"num_images": 20_000, "cache_images": 20_000, "raw_steps": 20, "raw_warm_up": 3},
        **{"cached_steps": 400, "loading_batches": 60, "shard_images": 4000},
    },
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION", help=f"sections, of {', '.join(SECTIONS)}; default: all")
    add("--no-peers", action="store_true", help="omit the section peers")
    add("--peers", nargs="*", choices=list(PEERS), metavar="PEER", help=f"only these tools, of {', '.join(PEERS)}; default: all")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 ...")
    add("--repeats", type=int, default=3, help="measurements of each way")
    add("--images", type=Path, default=Path("../shared/data/coco-cc"), help="folder with images/ and captions.json (COCO)")
    add("--captions", type=Path, default=CAPTIONS, help="COCO caption file, for the lengths and words of captions")
    add("--backbone", default="resnet152", help="torchvision's name of a classification network")
    add("--batch-size", type=int, default=128, help="captions per training step")
    add("--feature-images", type=int, default=training_ways.COCO_IMAGES, help="images of the generated feature file")
    add("--feature-dim", type=int, default=2048, help="features per image in it")
    add("--train-steps", type=int, default=60, help="training steps of the captioner whose decoding is measured")
    add("--decode-images", type=int, default=256, help="images that it decodes in each measurement")
    add("--peer-images", type=int, default=600, help="images in the section peers")
    add("--peer-features", type=int, default=8000, help="rows of features in the section peers")
    add("--growth-images", type=int, default=75, help="smallest number of images in the section growth")
    add("--growth-times", type=int, nargs="+", default=[1, 4, 16], help="multiples of this number")
    add("--growth-workers", type=int, nargs="+", default=[1, 2], help="numbers of worker processes in the section growth")
    add("--growth-backbone", default="squeezenet1_1", help="network in the section growth")
    for name, value in SIZES["cpu"].items():
        add("--" + name.replace("_", "-"), type=int, default=None, help=f"{value} on a CPU, {SIZES['cuda'][name]} on a GPU")
    add("--out", type=Path, default=Path("benchmarks/results"), help="folder for a dated JSON and Markdown report with plots")
    add("--table", type=Path, metavar="REPORT", help="print the README's table from a report's JSON without measuring")
    settings = parser.parse_args(argv)
    if settings.table is None and not (settings.images / "captions.json").is_file():
        parser.error(f"--images {settings.images}: holds no captions.json")
    try:
        device = pick_device(settings.device)
    except CapstreamError as problem:
        parser.error(str(problem))
    for name, value in SIZES["cpu" if device.type == "cpu" else "cuda"].items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    settings.images, settings.lengths = settings.images.resolve(), settings.captions
    settings.sections = [name for name in SECTIONS if name in (settings.only or SECTIONS) and not (name == "peers" and settings.no_peers)]
    if not settings.sections:
        parser.error("--only and --no-peers leave no section")
    return settings


def watching(measure: Callable[[], dict[str, float]], device: torch.device) -> dict[str, float]:
    """Run a measurement, and add the utilization of a GPU during it."""
    with gpu.watched(device) as samples:
        found = measure()
    busy = gpu.busy(samples)
    return found if busy is None else {**found, "busy": busy}


def in_turns(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    """The sections raw-cached and limits, from the same measurements."""
    bench_train.prepare(s, work)
    ways: dict[str, Callable[[], dict[str, float]]] = {}
    if "raw-cached" in s.sections:
        ways |= {way: partial(bench_train.in_a_process, s, work, way) for way in RAW_CACHED}
    if "limits" in s.sections:
        bench_limits.prepare(s, work)
        ways |= bench_limits.ways(s, work)
    device = pick_device(s.device)
    found = take_turns({name: partial(watching, way, device) for name, way in ways.items()}, s.repeats)
    report: dict[str, Any] = {}
    if "raw-cached" in s.sections:
        report["raw-cached"] = bench_train.summary(s, work, {way: found[way] for way in RAW_CACHED})
    if "limits" in s.sections:
        report["limits"] = bench_limits.summary(s, work, found)
    busy = {way: statistics.mean(run["busy"] for run in runs) for way, runs in found.items() if all("busy" in run for run in runs)}
    return report | ({"busy": busy} if busy else {})


def measure(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure the chosen sections, and the seconds that each took."""
    report: dict[str, Any] = {}
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {}
    if {"raw-cached", "limits"} & set(s.sections):
        parts["raw-cached and limits"] = partial(in_turns, s)
    if "peers" in s.sections:
        parts["peers"] = lambda folder: {"peers": bench_peers.measure(s, folder)}
    if "growth" in s.sections:
        parts["growth"] = lambda folder: {"growth": bench_growth.measure(s, folder)}
    seconds = {}
    for name, part in parts.items():
        say(f"--- {name}")
        folder = work / name.replace(" ", "-")
        folder.mkdir()
        started = time.perf_counter()
        report |= part(folder)
        seconds[name] = time.perf_counter() - started
    return report | {"seconds": seconds}


def device_lines(report: Mapping[str, Any]) -> list[str]:
    """Figures of the GPU, or a line that none was measured."""
    if report["settings"]["device"] == "cpu":
        return ["Not measured: this machine has no GPU, or it was not chosen (`--device cuda`)."]
    rows = []
    if "raw-cached" in report:
        found = report["raw-cached"]
        rows.append(["Caching: images/s, with start-up", f"{statistics.median(found['caching']['images_per_second']):,.0f}"])
        rows += [[f"{way}: seconds per COCO epoch", f"{seconds:,.0f}"] for way, seconds in found["epoch_seconds"].items()]
    if "limits" in report:
        stages = [stage for stage in report["limits"]["stages"] if stage["stage"].startswith("decoding captions")]
        rows += [[f"{stage['stage']}: captions/s", f"{statistics.median(stage['rates']):,.0f}"] for stage in stages]
        rows += [[f"{name}: share of the matrix products' peak", f"{100 * share:.0f}%"] for name, share in report["limits"]["share_of_peak"].items()]
    busy = report.get("busy")
    rows += [[f"{way}: share of time in which kernels ran", f"{100 * share:.0f}%"] for way, share in (busy or {}).items()]
    return [*table(["On the GPU", ""], rows), *([] if busy else ["", "Its utilization was not measured: nvidia-smi gave no samples."])]


def markdown(report: Mapping[str, Any], name: str) -> str:
    """The report as Markdown."""
    s = report["settings"]
    bodies: dict[str, Callable[[Any], Sequence[str]]] = {
        "raw-cached": lambda found: [
            f"{s['backbone']}, batches of {s['batch_size']}, one caption per unit, {found['tokens_per_caption']:.1f} tokens per caption, ours in "
            f"{found['precision']}; {s['raw_steps']} timed raw steps and {s['cached_steps']} cached steps per measurement, after an untimed small "
            f"batch (tutorial), {1 + s['raw_warm_up']} untimed raw steps and 10 untimed cached steps (ours); caching of {s['cache_images']} images. "
            "A raw step runs the network on an image for each caption, so that its images/s equal its captions/s.",
            "",
            *bench_train.summary_lines(found),
        ],
        "limits": lambda found: list(bench_limits.lines(found)),
        "peers": lambda found: list(bench_peers.lines(found)),
        "growth": lambda found: list(bench_growth.lines(found)),
    }
    lines = [f"# Benchmarks, {report['date']}", "", f"    {report['command']}", ""]
    lines += [f"Medians (min to max) of {s['repeats']} interleaved measurements, with a warm page cache unless a section says otherwise."]
    for section, title in SECTIONS.items():
        if section in report:
            lines += ["", f"## {title}", "", *bodies[section](report[section]), "", f"![{title}]({name}-{section}.png)"]
    lines += ["", "## The GPU", "", *device_lines(report)]
    took = ", ".join(f"{part} {seconds / 60:.1f}" for part, seconds in report["seconds"].items())
    return "\n".join([*lines, "", f"Minutes: {took}.", "", machine_line(report["machine"]), ""])


def readme_table(report: Mapping[str, Any]) -> list[str]:
    """The table in the README: raw and cached training, and the cost of the cache."""
    found = report["raw-cached"]
    hours = {way: seconds / 3600 for way, seconds in found["epoch_seconds"].items()}
    names = {"tutorial raw": "The tutorial: a folder of JPEGs, the network at every step", "ours raw": "Raw shards", "ours cached": "Cached features"}
    disk = {"tutorial raw": "folder of JPEGs", "ours raw": "shards", "ours cached": "feature file"}
    rows = [
        [
            name,
            f"{found['medians'][way]:,.1f}",
            f"{hours[way]:.2f}",
            f"{hours['tutorial raw'] / hours[way]:.1f}",
            f"{found['break_even_epochs'][way]:.2f}" if way in found["break_even_epochs"] else "",
            f"{found['disk'][disk[way]]['bytes_per_image'] * training_ways.COCO_IMAGES / 1e9:.2f}",
        ]
        for way, name in names.items()
    ]
    return table(["Method", "captions/s", "Hours per COCO epoch", "Speed-up", "Epochs until the cache pays off", "GB for COCO"], rows)


def relative_path(argument: str) -> str:
    """A command's argument for a report: absolute paths become relative, so that a report does not show where files are kept."""
    return os.path.relpath(argument, ROOT) if Path(argument).is_absolute() else argument


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the suite, print its report, write it with its plots to ``--out``, and return it."""
    settings = parse(argv)
    if settings.table is not None:
        report: dict[str, Any] = json.loads(settings.table.read_text())
        print("\n".join(readme_table(report)))
        return report
    with tempfile.TemporaryDirectory(prefix="capstream-bench-") as folder:
        report = measure(settings, Path(folder))
    shown = ("device", "repeats", "backbone", "batch_size", "feature_images", "feature_dim", "train_steps", "decode_images", *SIZES["cpu"])
    report |= {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "-m", "benchmarks.run", *map(relative_path, sys.argv[1:] if argv is None else argv)]),
        "settings": {name: getattr(settings, name) for name in (*shown, "peer_images", "peer_features", "growth_images", "growth_backbone")},
        "machine": machine("torch", "torchvision", "numpy", "h5py", "webdataset", "simplejpeg", "pillow", "pillow-simd")
        | {"torch_threads": torch.get_num_threads(), "device": device_name(pick_device(settings.device))},
    }
    on, only = ("" if settings.device == "cpu" else "-cuda"), "".join(f"-{name}" for name in settings.sections) if settings.only else ""
    name = f"suite{on}{only}-{report['date']}"
    for section in settings.sections:
        plots.draw(section, report[section], settings.out / f"{name}-{section}.png")
    write_report(settings.out, name, report, markdown(report, name))
    return report


if __name__ == "__main__":
    main()
