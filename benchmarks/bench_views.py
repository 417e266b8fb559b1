"""Do several cached views improve captions, and should evaluation use the center crop or the mean of the views?

The data are drawn scenes. Their features come from a pretrained network if its weights are given (--weights), or else from a random one. For
each kind of views and each seed, a captioner is trained on one random view per image and epoch. The run then captions the validation scenes
from their center crops and from the mean of all their views. Limits: drawn scenes are not natural images, and a few hundred validation scenes
leave the spread that the table shows.

    python -m benchmarks.bench_views --weights ../shared/data/weights/mobilenet_v2_tf2ptq-2d2ba5d1.pth --out benchmarks/results
"""

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine, machine_line, table, write_report
from benchmarks.workload import say
from model.decoding import greedy
from model.metrics import cider
from model.ptb import ptb_tokens
from pipeline.captions.english import sentence
from pipeline.datasets.synthetic import synthesize
from pipeline.features.cache_features import CacheConfig, cache_features
from pipeline.runs.run import open_run
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.shard import write_shards
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.train import train
from shards.features import open_features

CPU = torch.device("cpu")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kinds of cached views compared.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--num-images", type=int, default=2000, help="scenes to draw; every tenth is for validation")
    parser.add_argument("--backbone", default="mobilenet_v2", help="torchvision's name of a classification network")
    parser.add_argument("--weights", default="random", help="random, a published name, or a path")
    parser.add_argument("--views", nargs="+", default=["center", "flip", "random:4", "ten-crop"], help="kinds of views to compare")
    parser.add_argument("--seeds", type=int, default=3, help="trainings with each kind of views")
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each training")
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    return parser.parse_args(argv)


def scores(run: Path, features: Path) -> dict[str, float]:
    """CIDEr of greedy captions from the center crops, and from the mean of the views."""
    file = open_features(features / "val.h5")
    opened = open_run(run, device=CPU)
    references = [list(map(ptb_tokens, texts)) for texts in file.table.reference_texts()]
    found = {}
    for name, features_of in (("center", file.features[:, 0]), ("mean", file.mean_view())):
        words = greedy(opened.captioner, torch.from_numpy(np.array(features_of)), opened.vocabulary)
        found[name] = cider([ptb_tokens(sentence(caption)) for caption in words], references).corpus
    return found


def measure(s: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """A row for each kind of views and seed."""
    synthesize(work / "drawn", images=s.num_images)
    for split in ("train", "val"):
        captions = work / "drawn" / f"captions_{split}.json"
        write_shards(images=work / "drawn" / "images", captions=captions, out=work / "shards", split=split, config=ShardConfig(), workers=2)
    rows = []
    for views in s.views:
        features = work / views.replace(":", "-")
        cache_features(shards=work / "shards", out=features, config=CacheConfig(backbone=s.backbone, weights=s.weights, views=views, device="cpu"))
    for seed in range(s.seeds):
        for views in s.views:
            run, features = work / f"run-{views.replace(':', '-')}-{seed}", work / views.replace(":", "-")
            settings = {"epochs": s.epochs, "batch_size": 64, "lr": 2e-3, "schedule": "cosine", "hidden_dim": 256, "min_count": 1, "seed": seed}
            train(out=run, data=DataConfig(features=features), settings=settings, runtime=RuntimeConfig(device="cpu"))
            rows.append({"views": views, "seed": seed, **scores(run, features)})
            say("seed {seed}, {views}: CIDEr {center:.3f} from the center, {mean:.3f} from the mean".format(**rows[-1]))
    return rows


def markdown(report: dict[str, Any]) -> str:
    def cell(views: str, way: str) -> str:
        values = [row[way] for row in report["rows"] if row["views"] == views]
        return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    s = report["settings"]
    rows = [[views, cell(views, "center"), cell(views, "mean")] for views in s["views"]]
    lines = [
        f"# Views in training and evaluation, {report['date']}",
        "",
        f"{s['num_images']} drawn scenes, {s['backbone']}, {s['epochs']} epochs. CIDEr of greedy captions of {s['num_images'] // 10} scenes: mean "
        f"(min to max) of {s['seeds']} seeds.",
        "",
        *table(["--views in training", "Evaluated on the center crop", "Evaluated on the mean of the views"], rows),
        "",
        machine_line(report["machine"]),
        "",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it to ``--out``, and return the report."""
    s = parse(argv)
    with tempfile.TemporaryDirectory(prefix="capstream-bench-") as folder:
        rows = measure(s, Path(folder))
    settings = {name: getattr(s, name) for name in ("num_images", "backbone", "views", "seeds", "epochs")}
    settings["weights"] = Path(s.weights).name
    report = {"rows": rows, "date": date.today().isoformat(), "settings": settings, "machine": machine("torch", "torchvision")}
    write_report(s.out, f"bench_views-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
