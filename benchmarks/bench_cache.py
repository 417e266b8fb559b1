"""How fast is caching features, and how close is it to the speed of the network alone?

The data are real images, replicated as hard links and sharded. Three ways take turns (A B ours, A B ours, ...), each in its own process:

    A     the tutorial's way: PIL, ToTensor, Normalize and the network in float32, in sequence in one process
    B     the limit: the network of `cache-features`, in the same precision, on one batch that is already on the device
    ours  `python cli.py cache-features`: the whole command, from the start of the interpreter to its end

A and B are timed without start-up, after an untimed batch; ours includes everything. The weights are random, with BatchNorm statistics of
the images, in a .safetensors file. They are as fast as trained weights.

    python -m benchmarks.bench_cache --images ../shared/data/coco-cc --out benchmarks/results
    python -m benchmarks.bench_cache --steps       the gain of each step from A's network to torch.compile
    python -m benchmarks.bench_cache --views       time and disk space of each kind of views
    python -m benchmarks.bench_cache --memory      peak memory with 2,000 and with 40,000 images
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.generated import synchronized
from benchmarks.machine import device_name, machine, machine_line, spread, table, write_report
from benchmarks.workload import Usage, measured_apart, run_command, say, shard_images, take_turns, write_weights
from model.encoder import FrozenBackbone
from model.precision import folded
from model.preprocessing import normalize
from pipeline.backbone.backbones import open_backbone
from pipeline.backbone.precision import COMPILE_FROM_IMAGES, choose_precision, compile_if_worthwhile
from pipeline.execution.allocator import keep_freed_memory
from pipeline.execution.devices import pick_device
from pipeline.features.calibration import calibration_batches
from pipeline.sharding.read_samples import shard_samples
from shards.dataset import open_split
from shards.features import open_features

LIMIT = "B"
STEPS = {
    "fp32, channels first": {},
    "+ channels last": {"last": True},
    "+ BatchNorm folded": {"last": True, "fold": True},
    "+ freed memory kept": {"last": True, "fold": True, "keep": True},
    "+ half precision": {"last": True, "fold": True, "keep": True, "lower": True},
    "+ torch.compile, frozen": {"last": True, "fold": True, "keep": True, "lower": True, "compile": True},
}
WAYS = {**STEPS, LIMIT: {"last": True, "fold": True, "keep": True, "lower": True, "as_ours": True}}
VIEWS = ("center", "flip", "random:4", "ten-crop")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of caching features.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/coco-cc"), help="folder with images/ and captions.json (COCO)")
    parser.add_argument("--backbone", default="resnet152", help="torchvision's name of a classification network")
    parser.add_argument("--num-images", type=int, default=4000, help="images per measurement of ours")
    parser.add_argument("--batches", type=int, default=8, help="timed batches per measurement of A and B")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch")
    parser.add_argument("--size", type=int, default=256, help="size of the shards' images")
    parser.add_argument("--precision", default="auto", help="precision of ours and of B: auto, fp32, bf16 or fp16")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way")
    parser.add_argument("--steps", action="store_true", help="measure the steps from A's network to B's network instead")
    parser.add_argument("--views", action="store_true", help="measure time and disk space of each kind of views instead")
    parser.add_argument("--memory", type=int, nargs="*", default=None, help="measure peak memory with these numbers of images instead (2000 40000)")
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    settings = parser.parse_args(argv)
    if not (settings.images / "captions.json").is_file():
        parser.error(f"--images {settings.images}: holds no captions.json")
    return settings


def prepare(s: argparse.Namespace, work: Path, count: int) -> None:
    """Make shards of ``count`` images, and weights for the network."""
    split = shard_images(s.images, work, count, "--size", s.size)
    write_weights(split, s.backbone, work / "weights.safetensors")


def exact_network(s: argparse.Namespace) -> tuple[FrozenBackbone, torch.device]:
    """The network in float32, with weights from a file."""
    device = pick_device(s.device)
    split = open_split(s.work / "shards", "train")
    weights, resize = str(s.work / "weights.safetensors"), split.config["resize"]
    _, frozen = open_backbone(backbone=s.backbone, weights=weights, resize=resize, kept=s.work / "none", sample=lambda _: [])
    return frozen.to(device), device


@torch.inference_mode()
def measure_tutorial(s: argparse.Namespace) -> float:
    """A: images/s."""
    frozen, device = exact_network(s)
    network = frozen.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    p = frozen.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (p.mean, p.std))
    jpegs = [jpeg for _, jpeg, _ in shard_samples(open_split(s.work / "shards", "train").shards[0])]
    edge = (p.size - p.crop) // 2

    def load(jpeg: bytes) -> Tensor:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB").crop((edge, edge, edge + p.crop, edge + p.crop))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
        return (pixels - mean) / std

    def batch(number: int) -> None:
        chosen = [jpegs[(number * s.batch_size + row) % len(jpegs)] for row in range(s.batch_size)]
        network(torch.stack([load(jpeg) for jpeg in chosen]).to(device)).cpu()

    return timed(batch, s, device)


def timed(batch: Callable[[int], None], s: argparse.Namespace, device: torch.device) -> float:
    """Images/s over ``--batches`` batches, after one untimed batch."""
    batch(0)
    started = synchronized(device)
    for number in range(1, s.batches + 1):
        batch(number)
    return float(s.batches * s.batch_size / (synchronized(device) - started))


def measure_network(s: argparse.Namespace, step: dict[str, bool]) -> dict[str, float]:
    """Images/s of the network alone, on one batch that is already on the device, with some of the steps."""
    if step.get("keep"):
        keep_freed_memory()
    frozen, device = exact_network(s)
    images = torch.cat(list(calibration_batches(open_split(s.work / "shards", "train"), frozen.preprocessing.crop))[:1])
    seconds = 0.0
    if step.get("lower"):
        computed = choose_precision(frozen, precision=s.precision, device=device, sample=images)
        started = time.perf_counter()
        passes = COMPILE_FROM_IMAGES if step.get("compile") else s.num_images if step.get("as_ours") else 0
        computed = compile_if_worthwhile(computed, sample=images, views=passes, views_per_pass=s.batch_size)
        seconds = time.perf_counter() - started if computed.details["compiled"] else 0.0
        frozen = computed.frozen
    elif step.get("fold"):
        frozen = folded(frozen)
    with torch.no_grad():
        chosen = images[torch.arange(s.batch_size) % len(images)].to(device)
        pixels = normalize(chosen, frozen.scale, frozen.shift)
        if not step.get("last"):
            frozen, pixels = frozen.to(memory_format=torch.contiguous_format), pixels.contiguous()  # type: ignore[call-overload]
        return {"images_per_second": timed(lambda _: frozen.network(pixels), s, device), "compile_seconds": seconds}


def in_a_process(s: argparse.Namespace, work: Path, what: str) -> dict[str, float]:
    """One measurement in its own process."""
    names = ("images", "backbone", "num_images", "batches", "batch_size", "precision", "device")
    return measured_apart("benchmarks.bench_cache", {name: getattr(s, name) for name in names}, work, what)


def ours(s: argparse.Namespace, work: Path, out: Path, *more: object) -> Usage:
    """Run the whole `cache-features` command."""
    weights = ("--weights", work / "weights.safetensors", "--batch-size", s.batch_size, "--device", s.device, "--precision", s.precision)
    return run_command("cache-features", "--shards", work / "shards", "--out", out, "--backbone", s.backbone, *weights, *more)


def speed(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure A, B and ours in turns."""
    prepare(s, work, s.num_images)
    rates: dict[str, list[float]] = {"A": [], "B": [], "ours": []}
    start_up = []
    for repeat in range(s.repeats):
        rates["A"].append(in_a_process(s, work, "tutorial")["images_per_second"])
        rates["B"].append(in_a_process(s, work, LIMIT)["images_per_second"])
        out = work / f"features-{repeat}"
        rates["ours"].append(s.num_images / ours(s, work, out).seconds)
        start_up.append(ours(s, work, out).seconds)
        say(f"repeat {repeat + 1} of {s.repeats}: " + ", ".join(f"{way} {values[-1]:.1f}" for way, values in rates.items()) + " images/s")
    provenance = open_features(work / "features-0" / "train.h5").provenance
    medians = {way: statistics.median(values) for way, values in rates.items()}
    return {
        "rates": rates,
        "medians": medians,
        "ratios": {"ours / A": medians["ours"] / medians["A"], "ours / B": medians["ours"] / medians["B"]},
        "second_call_seconds": statistics.median(start_up),
        "precision": provenance.precision,
        "computation": provenance.arithmetic,
    }


def steps(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure the network alone with each set of steps, in turns."""
    prepare(s, work, min(s.num_images, 200))
    found = take_turns({name: partial(in_a_process, s, work, name) for name in STEPS}, s.repeats)
    return {"steps": {name: {key: [run[key] for run in runs] for key in runs[0]} for name, runs in found.items()}}


def views(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure the whole command and the file size for each kind of views, in turns."""
    prepare(s, work, s.num_images)
    found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in VIEWS}
    for repeat in range(s.repeats):
        for name in VIEWS:
            out = work / f"{name.replace(':', '-')}-{repeat}"
            found[name]["seconds"].append(ours(s, work, out, "--views", name).seconds)
            file = open_features(out / "train.h5")
            found[name] |= {"views": len(file.provenance.views), "bytes": (out / "train.h5").stat().st_size, "feature_bytes": file.features.nbytes}
            say(f"repeat {repeat + 1} of {s.repeats}: {name}: {found[name]['seconds'][-1]:.1f} s")
    return {"views": found}


def memory(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure the peak memory of the whole command with several numbers of images."""
    rows = []
    for count in s.memory:
        folder = work / str(count)
        folder.mkdir()
        prepare(s, folder, count)
        usage = ours(s, folder, folder / "features")
        rows.append({"images": count, "peak_bytes": usage.peak_bytes, "seconds": usage.seconds})
        say(f"{count} images: peak {usage.peak_bytes / 1e6:.0f} MB, {usage.seconds:.0f} s")
    return {"memory": rows}


def markdown(report: dict[str, Any]) -> str:
    settings = report["settings"]
    lines = [f"# Caching features, {settings['backbone']}, {report['date']}", ""]
    lines += [f"Batches of {settings['batch_size']}. Medians (min to max) of {settings['repeats']} interleaved measurements; warm page cache.", ""]
    if "rates" in report:
        images = settings["num_images"]
        lines += [
            f"Ours: {images:,} images from shards, the whole command, precision {report['precision']} ({report['computation']}). The same command "
            f"again, with nothing left to do, takes {report['second_call_seconds']:.1f} s.",
            "",
            *table(["Method", "images/s"], [[way, spread(values)] for way, values in report["rates"].items()]),
            "",
            *table(["Ratio", "Value"], [[name, f"{value:.3f}"] for name, value in report["ratios"].items()]),
        ]
    elif "steps" in report:
        rows = [
            [name, spread(runs["images_per_second"]), f"{statistics.median(runs['compile_seconds']):.0f} s" if any(runs["compile_seconds"]) else ""]
            for name, runs in report["steps"].items()
        ]
        lines += ["The network alone, on a batch that is already on the device.", "", *table(["Step", "images/s", "compiling"], rows)]
    elif "views" in report:
        images, center = settings["num_images"], statistics.median(report["views"]["center"]["seconds"])
        rows = [
            [name, f"{v['views']}", spread(v["seconds"]), f"{statistics.median(v['seconds']) / center:.2f}", f"{v['bytes'] / images:,.0f}"]
            for name, v in report["views"].items()
        ]
        header = ["--views", "Stored", "Seconds", "Relative to center", "Bytes per image, with captions"]
        lines += [f"{images:,} images, the whole command.", "", *table(header, rows)]
    else:
        cells = [[f"{row['images']:,}", f"{row['peak_bytes'] / 1e6:,.0f} MB", f"{row['seconds']:.0f}"] for row in report["memory"]]
        lines += ["The whole command; memory of its largest process.", "", *table(["Images", "Peak memory", "Seconds"], cells)]
    return "\n".join([*lines, "", machine_line(report["machine"]), ""])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it to ``--out``, and return the report."""
    settings = parse(argv)
    if settings.measure is not None:
        rate = {"images_per_second": measure_tutorial(settings)} if settings.measure == "tutorial" else None
        print(json.dumps(rate or measure_network(settings, WAYS[settings.measure])))
        return {}
    kind, run = "", speed
    if settings.steps:
        kind, run = "-steps", steps
    elif settings.views:
        kind, run = "-views", views
    elif settings.memory is not None:
        settings.memory = settings.memory or [2000, 40_000]
        kind, run = "-memory", memory
    settings.images = settings.images.resolve()
    with tempfile.TemporaryDirectory(prefix="capstream-bench-") as folder:
        report = run(settings, Path(folder))
    device = pick_device(settings.device)
    report |= {
        "date": date.today().isoformat(),
        "settings": {name: getattr(settings, name) for name in ("backbone", "num_images", "batches", "batch_size", "size", "repeats")},
        "machine": machine("torch", "torchvision", "simplejpeg", "pillow", "pillow-simd")
        | {"torch_threads": torch.get_num_threads(), "device": device_name(device)},
    }
    write_report(settings.out, f"bench_cache{kind}-{settings.backbone}-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
