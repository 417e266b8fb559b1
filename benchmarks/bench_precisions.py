"""Does training in bfloat16 give the same loss curve as in float32?

The same trainings run with the same seeds in both precisions, on real Flickr8k features. The difference between two float32 trainings with
different seeds shows the noise.

    python -m benchmarks.bench_precisions --out benchmarks/results
"""

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine, machine_line, table, write_report
from benchmarks.workload import say
from pipeline.captions.read import CaptionSource
from pipeline.features.import_features import import_features
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.train import train
from shards.json_files import write_json

PRECISIONS = ("fp32", "bf16")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Loss curves in fp32 and bf16.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    folder = Path("../shared/data/flickr8k-features")
    parser.add_argument("--data", type=Path, default=folder, help="folder with features.npy and dataset_flickr8k.json")
    parser.add_argument("--num-images", type=int, default=None, help="use only the first N images of each split")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each training")
    parser.add_argument("--seeds", type=int, default=2, help="trainings in each precision")
    parser.add_argument("--batch-size", type=int, default=128, help="captions per step")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    settings = parser.parse_args(argv)
    if not (settings.data / "features.npy").is_file():
        parser.error(f"--data {settings.data}: holds no features.npy")
    return settings


def curves(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train with each seed in both precisions, in turns."""
    flickr_features(s.data, work, s.num_images)
    rows = []
    for seed, precision in itertools.product(range(s.seeds), PRECISIONS):
        out = work / f"{precision}-{seed}"
        settings = {"precision": precision, "seed": seed, "epochs": s.epochs, "batch_size": s.batch_size}
        train(out=out, data=DataConfig(features=work / "features"), settings=settings, runtime=RuntimeConfig(device=s.device))
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        curve = [line["mean_loss"] for line in lines if "mean_loss" in line]
        scores = [{name: line[name] for name in ("epoch", "val_loss", "val_cider")} for line in lines if "val_loss" in line]
        rows.append({"precision": precision, "seed": seed, "mean_loss": curve, "val": scores})
        say(f"{precision}, seed {seed}: {scores}")
    return {"trainings": rows}


def flickr_features(source: Path, work: Path, limit: int | None) -> None:
    """Feature files of the first ``limit`` images of each split, in ``work/features``."""
    content = json.loads((source / "dataset_flickr8k.json").read_text())
    chosen = [[image for image in content["images"] if image["split"] == split][:limit] for split in ("train", "val")]
    write_json(work / "captions.json", {**content, "images": list(itertools.chain(*chosen))})
    import_features(npy=source / "features.npy", captions=CaptionSource(paths=(work / "captions.json",)), out=work / "features")


def distances(trainings: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean absolute difference of training losses (means over ten steps): between precisions for each seed, and between seeds in fp32."""
    curves = {(t["precision"], t["seed"]): t["mean_loss"] for t in trainings}
    seeds = sorted({seed for _, seed in curves})
    pairs = {f"fp32 and bf16, seed {seed}": (curves["fp32", seed], curves["bf16", seed]) for seed in seeds}
    pairs |= {f"fp32, seeds {a} and {b}": (curves["fp32", a], curves["fp32", b]) for a, b in itertools.combinations(seeds, 2)}
    return {name: statistics.mean(abs(a - b) for a, b in zip(*pair, strict=True)) for name, pair in pairs.items()}


def markdown(report: dict[str, Any]) -> str:
    epochs = range(1, report["settings"]["epochs"] + 1)
    header = ["Precision", "Seed", *(f"After epoch {n}: val loss, CIDEr (greedy)" for n in epochs)]
    cells = [[t["precision"], str(t["seed"]), *(f"{v['val_loss']:.4f}, {v['val_cider']:.4f}" for v in t["val"])] for t in report["trainings"]]
    apart = [[name, f"{value:.4f}"] for name, value in report["distances"].items()]
    lines = [f"# fp32 and bf16 on Flickr8k features, {report['date']}", "", *table(header, cells), ""]
    lines += [*table(["Mean difference of the training loss between", "nats per token"], apart), "", machine_line(report["machine"]), ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it to ``--out``, and return the report."""
    settings = parse(argv)
    with tempfile.TemporaryDirectory(prefix="capstream-bench-") as folder:
        report = curves(settings, Path(folder))
    report |= {
        "distances": distances(report["trainings"]),
        "date": date.today().isoformat(),
        "settings": {name: getattr(settings, name) for name in ("num_images", "epochs", "seeds", "batch_size")},
        "machine": machine("torch", "numpy") | {"torch_threads": torch.get_num_threads()},
    }
    write_report(settings.out, f"bench_precisions-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
