"""How long does a step of self-critical training take, and what share of it is scoring?

The step of ``train --self-critical`` runs on real captions (five references per image) with random features, with the tutorial's sizes and
COCO's 9,956 words. The captioner was trained briefly, so that captions have realistic lengths. Each step is timed as a whole, and the reward
(tokens to scores) within it. A cross-entropy step takes turns with it, on as many given captions as the self-critical step samples, so that
the report can compare the time of a sampled caption with that of a given one.

    python -m benchmarks.bench_self_critical --out benchmarks/results
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.generated import synchronized, train_a_little
from benchmarks.machine import machine, machine_line, table, write_report
from pipeline.backbone.precision import decoder_precision
from pipeline.captions.english import tokenize
from pipeline.execution.devices import pick_device, prepare_device
from pipeline.loading.batches import CaptionBatch, EncodedCaptions, to_device, training_batches
from pipeline.loading.training_data import open_cached
from pipeline.runs.recipes import chosen_settings
from pipeline.runs.run import open_run
from pipeline.runs.train_config import TrainConfig
from pipeline.training.cross_entropy import CrossEntropyStep
from pipeline.training.distributed import ProcessGroup
from pipeline.training.self_critical import Reward, SelfCriticalStep
from pipeline.training.train_state import adamw
from shards.caption_table import CaptionTable, table_from_records

DIM = 2048


class TimedReward(Reward):
    """The reward, with the total seconds of its calls."""

    seconds = 0.0

    def __call__(self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.float64]:
        began = time.perf_counter()
        scores = super().__call__(tokens, lengths, images)
        self.seconds += time.perf_counter() - began
        return scores


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time of a step of self-critical training.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--captions", type=Path, default=Path("../shared/data/coco-captions/captions_val2017.json"), help="COCO caption file")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step")
    parser.add_argument("--samples", type=int, default=5, help="sampled captions per image")
    parser.add_argument("--train-steps", type=int, default=150, help="cross-entropy steps before the measurement")
    parser.add_argument("--repeats", type=int, default=15, help="timed steps of each kind")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    return parser.parse_args(argv)


def caption_table(path: Path) -> CaptionTable:
    """The captions of a COCO file, image by image."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for annotation in json.loads(path.read_bytes())["annotations"]:
        text = annotation["caption"]
        groups.setdefault(annotation["image_id"], []).append({"id": annotation["id"], "text": text, "tokens": tokenize(text)})
    records = [
        (f"{row:09}", {"image_id": image, "file_name": f"{image}.jpg", "captions": captions}) for row, (image, captions) in enumerate(groups.items())
    ]
    return table_from_records([records[start : start + 1000] for start in range(0, len(records), 1000)])


def measure(settings: argparse.Namespace, folder: Path) -> dict[str, Any]:
    train_a_little(folder, caption_table(settings.captions), dim=DIM, steps=settings.train_steps, device=settings.device)
    device = pick_device(settings.device)
    prepare_device(device)
    run, data = open_run(folder / "run", device=device), open_cached(folder / "features", device)
    source, captioner = data.source, run.captioner.train()
    said = {"self_critical": True, "batch_size": settings.batch_size, "samples": settings.samples}
    config = TrainConfig(**chosen_settings({**said, "precision": decoder_precision("auto", device)}, initial_run=run.config.train))
    reward = TimedReward(source.table, run.vocabulary)
    critical = SelfCriticalStep(captioner, captioner, lambda batch: batch.images, config, ProcessGroup(), reward)
    given = CrossEntropyStep(captioner, captioner, lambda batch: batch.images, config, 1, ProcessGroup())
    optimizer, encoded = adamw(captioner, config), EncodedCaptions(source.table, run.vocabulary, device)

    def batches(units: int, captions_per_image: int) -> list[CaptionBatch]:
        stream = training_batches(source, encoded, seed=0, epoch=0, batch_size=units, captions_per_image=captions_per_image)
        return [to_device(batch, device) for batch, _ in zip(stream, range(settings.repeats + 1), strict=False)]

    def timed(step: Callable[[CaptionBatch], Tensor], batch: CaptionBatch) -> float:
        began = synchronized(device)
        optimizer.zero_grad()
        step(batch)
        optimizer.step()
        return synchronized(device) - began

    steps: dict[str, list[float]] = {"self-critical": [], "scoring": [], "cross-entropy": []}
    pairs = zip(batches(settings.batch_size, config.captions_per_image), batches(settings.batch_size * settings.samples, 1), strict=False)
    for number, (images, captions) in enumerate(pairs):
        before = reward.seconds
        own, other = timed(critical, images), timed(given, captions)
        if number:  # the first round warms up
            for name, value in (("self-critical", own), ("scoring", reward.seconds - before), ("cross-entropy", other)):
                steps[name].append(value)
    medians = {name: statistics.median(values) for name, values in steps.items()}
    sampled = settings.batch_size * settings.samples
    return {
        "precision": config.precision,
        "seconds": steps,
        "medians": medians,
        "scoring_share": statistics.median(score / step for score, step in zip(steps["scoring"], steps["self-critical"], strict=True)),
        "captions_per_second": {name: sampled / medians[name] for name in ("self-critical", "cross-entropy")},
        "cost_of_a_sampled_caption": statistics.median(
            own / other for own, other in zip(steps["self-critical"], steps["cross-entropy"], strict=True)
        ),
    }


def markdown(report: dict[str, Any]) -> str:
    rows = [
        [name, f"{1e3 * report['medians'][name]:,.1f}", f"{1e3 * min(spent):,.1f} to {1e3 * max(spent):,.1f}"]
        for name, spent in report["seconds"].items()
    ]
    s = report["settings"]
    lines = [
        f"# Self-critical training, {report['date']}",
        "",
        f"{s['batch_size']} images with {s['samples']} sampled captions each, and as many given captions; decoder in {report['precision']}.",
        "",
        *table(["Step", "ms (median)", "range"], rows),
        "",
        f"Scoring takes {100 * report['scoring_share']:.1f}% of a self-critical step. A sampled caption takes "
        f"{report['cost_of_a_sampled_caption']:.2f} times as long as a given one.",
    ]
    return "\n".join([*lines, "", machine_line(report["machine"]), ""])


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it to ``--out``, and return the report."""
    settings = parse(argv)
    with tempfile.TemporaryDirectory(prefix="capstream-bench-") as folder:
        report = measure(settings, Path(folder))
    report |= {
        "date": date.today().isoformat(),
        "settings": {name: getattr(settings, name) for name in ("batch_size", "samples", "train_steps", "repeats", "device")},
        "machine": machine("torch", "numpy") | {"torch_threads": torch.get_num_threads()},
    }
    write_report(settings.out, f"bench_self_critical-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
