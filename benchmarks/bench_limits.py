"""How close is each stage to its limit?

A stage's limit is the speed of its main operation alone: the same decoding, network or matrix product, on data that are already in memory.
The machine's peak FLOP/s and memory bandwidth are measured too. All measurements take turns (A B C ..., A B C ...), each in its own process.
The suite runs this: ``--only limits``.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_cache, bench_decode, bench_shard, bench_train, training_ways
from benchmarks.generated import WORDS, synchronized
from benchmarks.machine import spread, table
from benchmarks.tutorial import EMBEDDING, HIDDEN
from benchmarks.workload import measured_apart, replicate
from pipeline.backbone.precision import decoder_precision
from pipeline.execution.devices import pick_device, prepare_device
from pipeline.execution.executors import default_workers
from pipeline.runs.run import open_run
from shards.dataset import open_split
from shards.features import open_features

Found = Mapping[str, Sequence[Mapping[str, float]]]
RATE = "images_per_second"
FROM_TRAINING = ("ours loading", "bare decoding", "ours caching", "ours cached", "matrix products")
# Stage, unit, measurement and limit: the last two as (way, figure).
STAGES = (
    ("`shard`", "images/s", ("ours sharding", RATE), ("decoding, resizing and encoding alone", RATE)),
    ("`shard`", "images/s", ("ours sharding", RATE), ("decoding images alone", RATE)),
    ("loading for training from shards", "images/s", ("ours loading", bench_train.CAPTIONS), ("bare decoding", bench_train.CAPTIONS)),
    ("`cache-features`, without start-up", "images/s", ("ours caching", "steady_images_per_second"), ("bare forward", RATE)),
    ("`train --features`", "captions/s", ("ours cached", bench_train.CAPTIONS), ("matrix products", bench_train.CAPTIONS)),
    ("decoding captions, greedy", "captions/s", ("captions", "greedy"), ("captions", "greedy products")),
    ("decoding captions, beam 5", "captions/s", ("captions", "beam 5"), ("captions", "beam 5 products")),
)


def prepare(s: argparse.Namespace, work: Path) -> None:
    """Add what :func:`benchmarks.bench_train.prepare` does not make: more images, and a briefly trained captioner."""
    replicate(s.images, work / "many", s.shard_images)
    (work / "captioner").mkdir()
    settings = argparse.Namespace(captions=s.captions, train_steps=s.train_steps, device=s.device, num_images=1)
    bench_decode.trained_run(settings, work / "captioner")


def ways(s: argparse.Namespace, work: Path) -> dict[str, Callable[[], dict[str, float]]]:
    """The measurements by name."""
    cores = default_workers()
    whole = s.shard_images // cores * cores

    def sharding() -> dict[str, float]:
        out = Path(tempfile.mkdtemp(dir=work))
        return {RATE: s.shard_images / bench_shard.ours(work / "many", out, s.shard_images, cores, 500).seconds}

    def bare(decode_only: bool) -> dict[str, float]:
        return {RATE: whole / bench_shard.limit(s.images, whole, cores, decode_only=decode_only)}

    # The number of images per pass that cache-features chooses itself.
    batches, batch_size = (20, 256) if pick_device(s.device).type == "cuda" else (2, 32)
    network = argparse.Namespace(**vars(s) | {"precision": "auto", "batches": batches, "batch_size": batch_size})
    own = {name: getattr(s, name) for name in ("device", "decode_images", "batch_size", "backbone")}
    return {
        "ours sharding": sharding,
        "decoding, resizing and encoding alone": partial(bare, False),
        "decoding images alone": partial(bare, True),
        **{way: partial(bench_train.in_a_process, s, work, way) for way in FROM_TRAINING},
        "bare forward": partial(bench_cache.in_a_process, network, work, bench_cache.LIMIT),
        **{way: partial(measured_apart, "benchmarks.bench_limits", own, work, way) for way in APART},
    }


def captions(s: argparse.Namespace) -> dict[str, float]:
    """Captions/s of decoding, and of the vocabulary's matrix product alone for the same number of words."""
    device = pick_device(s.device)
    prepare_device(device)
    folder = s.work / "captioner"
    run = open_run(folder / "run", device=device)
    features = torch.from_numpy(open_features(folder / "features" / "train.h5").features[: s.decode_images, 0].copy()).to(device)
    found = {}
    for name, beam in (("greedy", 1), ("beam 5", 5)):
        bench_decode.captions_of(run, features[: s.batch_size], s.batch_size, beam)  # warms up
        began = synchronized(device)
        made = bench_decode.captions_of(run, features, s.batch_size, beam)
        found[name] = len(made) / (synchronized(device) - began)
        words = sum(map(len, made)) / len(made) + 1
        bench_decode.products_seconds(run.captioner, beam * s.batch_size, 2)
        found[f"{name} products"] = s.batch_size / (bench_decode.products_seconds(run.captioner, beam * s.batch_size, 10) / 10 * words)
    return found


def machine_limits(s: argparse.Namespace) -> dict[str, float]:
    """FLOP/s of large matrix products in the precisions that the device supports well; bytes/s of a copy and of a triad a = b + c * d."""
    device = pick_device(s.device)
    gpu = device.type == "cuda"
    side, numbers = (8192, 1 << 28) if gpu else (2048, 1 << 26)
    found = {}
    # Without bfloat16 instructions, a single product takes a minute.
    kinds = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if decoder_precision("auto", device) == "bf16" else {})
    for name, kind in kinds.items():
        one, other = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        found[f"{name} flops"] = 2 * side**3 / seconds_of(lambda one=one, other=other: one @ other, device)  # type: ignore[misc]
    target, one, other = (torch.ones(numbers, device=device) for _ in range(3))
    found["copy_bytes_per_second"] = 2 * one.nbytes / seconds_of(lambda: target.copy_(one), device)
    found["triad_bytes_per_second"] = 3 * one.nbytes / seconds_of(lambda: torch.add(one, other, alpha=3.0, out=target), device)
    return found


def flop_per_image(s: argparse.Namespace, work: Path) -> float:
    """FLOP of the frozen network for one image."""
    settings = argparse.Namespace(work=work, backbone=s.backbone)
    network = training_ways.tutorial_network(settings, open_split(work / "shards", "train"), torch.device("cpu")).network
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, training_ways.CROP, training_ways.CROP))
    return float(counter.get_total_flops())


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of several calls, after an untimed one."""
    taken = []
    for _ in range(6):
        began = synchronized(device)
        work()
        taken.append(synchronized(device) - began)
    return statistics.median(taken[1:])


APART: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {"captions": captions, "machine": machine_limits}


def flop_per_caption(tokens: float) -> float:
    """FLOP of the decoder's matrix products for one caption in training; the backward pass counts twice. ``tokens`` includes <start> or <end>."""
    return 3 * 2 * tokens * (HIDDEN * WORDS + EMBEDDING * 4 * HIDDEN + HIDDEN * 4 * HIDDEN)


def summary(s: argparse.Namespace, work: Path, found: Found) -> dict[str, Any]:
    """Each stage with its limit and the share that it reaches, and the machine's peak speeds."""
    device = pick_device(s.device)

    def values(way: str, figure: str) -> list[float]:
        return [run[figure] for run in found[way]]

    stages = [
        {
            "stage": stage,
            "unit": unit,
            "rates": values(*own),
            "limit": limit[0] if limit[0] != "captions" else "the vocabulary's matrix product alone",
            "limits": values(*limit),
            "share": statistics.median(values(*own)) / statistics.median(values(*limit)),
        }
        for stage, unit, own, limit in STAGES
    ]
    machine = {key: statistics.median(values("machine", key)) for key in found["machine"][0]} | {"flop_per_image": flop_per_image(s, work)}
    precision = decoder_precision("auto", device)
    tokens = training_ways.tokens_per_caption(work)
    medians = {stage: statistics.median(values(*own)) for stage, _, own, _ in STAGES}
    peak = machine[f"{precision} flops"]
    return {
        "stages": stages,
        "machine": machine,
        "precision": precision,
        "share_of_peak": {
            "bare forward": statistics.median(values("bare forward", RATE)) * machine["flop_per_image"] / peak,
            "`cache-features`, without start-up": medians["`cache-features`, without start-up"] * machine["flop_per_image"] / peak,
            "`train --features`": medians["`train --features`"] * flop_per_caption(tokens) / peak,
        },
    }


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The section as Markdown."""
    rows = [
        [stage["stage"], spread(stage["rates"]), stage["unit"], stage["limit"], spread(stage["limits"]), f"{100 * stage['share']:.0f}%"]
        for stage in report["stages"]
    ]
    yield from table(["Stage", "Speed", "Unit", "Limit", "Speed of the limit", "Share"], rows)
    m = report["machine"]
    products = [f"{m[f'{kind} flops'] / 1e9:,.0f} GFLOP/s in {kind}" for kind in ("fp32", "bf16") if f"{kind} flops" in m]
    yield from (
        "",
        f"The machine: {' and '.join(products)} (large matrix products), "
        f"{m['copy_bytes_per_second'] / 1e9:,.1f} GB/s in a copy, {m['triad_bytes_per_second'] / 1e9:,.1f} GB/s in a triad. "
        f"An image takes {m['flop_per_image'] / 1e9:.1f} GFLOP.",
        "",
        f"Shares of the matrix products' peak in {report['precision']}: "
        + ", ".join(f"{name} {100 * share:.0f}%" for name, share in report["share_of_peak"].items())
        + ".",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Make one measurement; the suite runs this."""
    parser = argparse.ArgumentParser(description="One of the limits. All measurements: python -m benchmarks.run --only limits")
    parser.add_argument("--measure", required=True, choices=list(APART))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbone", default="resnet152")
    parser.add_argument("--decode-images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=128)
    settings = parser.parse_args(argv)
    print(json.dumps(APART[settings.measure](settings)))


if __name__ == "__main__":
    main()
