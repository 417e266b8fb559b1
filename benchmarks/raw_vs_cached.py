"""How much faster is training from cached features, and after how many epochs has making the cache paid?

Three ways to train the same captioner on the same captions, in turns (A B C A B C ...), and once the pass that makes the cache:

    A  the tutorial's way, as it is usually written: a folder of resized JPEGs, one item per caption, decoded and tokenized by
       DataLoader workers, and the frozen network run at every step
    B  Capstream from raw shards: decoding in threads, pixels as uint8, and the frozen network run at every step
    C  Capstream from a feature file: no image is decoded and no network runs

What it trades: a few steps stand for an epoch, so run it on an idle machine. Batches decoded ahead during the untimed first step
serve the timed ones, in A and B alike: where decoding is the slow part (beside a GPU), give more --raw-steps. A's files lie in
memory, as a whole dataset's would not. All ways share one process, so A too enjoys that freed memory is kept (pipeline/allocator.py).
Random weights are as fast as trained ones.

    python -m benchmarks.raw_vs_cached --out benchmarks/results
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import date
from itertools import count, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python benchmarks/raw_vs_cached.py`

import numpy as np
import torch

from benchmarks.machine import machine, machine_line, write_report
from benchmarks.tutorial import EMBEDDING, HIDDEN, LEARNING_RATE, MIN_COUNT, JpegFolder, Steps, TutorialCaptioner, tutorial_steps, unpack
from benchmarks.workload import say
from model.decoder import Captioner, DecoderConfig
from pipeline.backbones import KEPT_FILE, pick_device, reopen_backbone
from pipeline.batches import Encoded, to_device, training_batches
from pipeline.cache_features import cache_features
from pipeline.executors import default_workers
from pipeline.order import batch_bounds
from pipeline.shard import ShardConfig, write_shards
from pipeline.sources import Source
from pipeline.synthetic import synthesize
from pipeline.training_data import Features, open_cached, open_raw
from pipeline.vocab import vocabulary_of
from shards.manifest import Split, open_split

WAYS = {"A": "A: tutorial, JPEG folder", "B": "B: raw shards", "C": "C: cached features"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The command line."""

    dataset: str = field(default="synth", metadata={"help": "data to draw where --images is not given (only synth)"})
    synth_images: int = field(default=600, metadata={"help": "scenes to draw; every tenth is left out"})
    images: Path | None = field(default=None, metadata={"help": "folder of photographs, with --captions"})
    captions: Path | None = field(default=None, metadata={"help": "COCO caption file, with --images"})
    backbone: str = field(default="resnet152", metadata={"help": "torchvision's name of a classification network"})
    weights: str = field(default="random", metadata={"help": "random (seeded), a published name, or a path"})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda ..."})
    batch_size: int = field(default=128, metadata={"help": "captions per step"})
    num_workers: int = field(default=2, metadata={"help": "DataLoader workers of A"})
    raw_steps: int = field(default=2, metadata={"help": "timed steps per measurement of A and B"})
    cached_steps: int = field(default=20, metadata={"help": "timed steps per measurement of C"})
    repeats: int = field(default=3, metadata={"help": "measurements of each way"})
    epoch_captions: int = field(default=414_113, metadata={"help": "captions that an epoch is scaled to (COCO train2014)"})
    epoch_images: int = field(default=82_783, metadata={"help": "images that the caching pass is scaled to"})
    out: Path | None = field(default=None, metadata={"help": "folder for a dated JSON and Markdown report"})


def parse(argv: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(description="Raw against cached training.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for f in fields(Settings):
        kind: Callable[[str], Any] = Path if f.default is None else type(f.default)
        parser.add_argument("--" + f.name.replace("_", "-"), type=kind, default=f.default, help=f.metadata["help"])
    settings = Settings(**vars(parser.parse_args(argv)))
    if settings.dataset != "synth" or (settings.images is None) != (settings.captions is None):
        parser.error("give --dataset synth, or both --images DIR and --captions FILE")
    if settings.batch_size < 2 or min(settings.raw_steps, settings.cached_steps, settings.repeats) < 1 or settings.num_workers < 0:
        parser.error("--batch-size must be at least 2, steps and --repeats at least 1, --num-workers at least 0")
    return settings


def our_steps(source: Source, encoded: Encoded, features_of: Features, captioner: Captioner, device: torch.device, s: Settings, seed: int) -> Steps:
    """B and C: train without end, as ``pipeline.train`` does, on whole batches."""
    optimizer = torch.optim.Adam(captioner.parameters(), lr=LEARNING_RATE)
    for epoch in count():
        for read in training_batches(source, encoded, seed=seed, epoch=epoch, batch_size=s.batch_size):
            if len(read.captions) != s.batch_size:
                continue
            batch = to_device(read, device)
            optimizer.zero_grad()
            images = captioner.projection(features_of(batch))
            (captioner(images, batch.unit_rows, batch.tokens, batch.caption_lengths) / batch.batch_tokens).backward()
            optimizer.step()
            yield len(batch.images), len(batch.captions)


def measure(way: str, stream: Steps, steps: int, device: torch.device) -> dict[str, Any]:
    """Time ``steps`` steps after one that is not timed."""
    wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    next(stream)
    wait()
    started = time.perf_counter()
    images, captions = np.sum(list(islice(stream, steps)), axis=0).tolist()
    wait()
    seconds = time.perf_counter() - started
    stream.close()
    return {"way": way, "images": images, "captions": captions, "seconds": seconds}


def prepare_shards(folder: Path, s: Settings) -> Split:
    """The data as a shard dataset."""
    images, captions = s.images, s.captions
    if images is None or captions is None:
        synthesize(folder / "drawn", images=s.synth_images)
        images, captions = folder / "drawn" / "images", folder / "drawn" / "captions_train.json"
    write_shards(images=images, captions=captions, out=folder / "shards", config=ShardConfig(), workers=default_workers())
    return open_split(folder / "shards", "train")


def run(s: Settings, folder: Path) -> dict[str, Any]:
    """Prepare, measure, and return the report as JSON."""
    device = pick_device(s.device)
    say("preparing shards")
    split = prepare_shards(folder, s)
    say(f"making {s.backbone}, weights {s.weights}")
    cache = folder / "features"
    raw = open_raw(split.folder, cache, backbone=s.backbone, weights=s.weights, augment="tutorial", precision="fp32", device=device)
    table, network, frozen = raw.source.table, raw.network, raw.frozen
    assert frozen is not None
    if all(stop - start != s.batch_size for start, stop in batch_bounds(table.captions, s.batch_size)):
        sys.exit(f"--batch-size {s.batch_size}: there is no batch of this size in {table.captions} captions.")
    say(f"caching {split.images} images")
    started = time.perf_counter()  # random weights are made and kept by now: only the pass is timed
    cache_features(shards=split.folder, out=cache, splits=["train"], backbone=s.backbone, weights=s.weights, device=s.device, quiet=False)
    cache_seconds = time.perf_counter() - started
    cached = open_cached(cache, device)

    torch.manual_seed(0)
    words = vocabulary_of(table, min_count=MIN_COUNT).vocabulary
    encoded = Encoded(table, words)
    # A's network has the same weights in torch's default memory layout.
    plain = reopen_backbone(network, kept=cache / KEPT_FILE).network.to(device=device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    jpegs = JpegFolder(folder / "jpegs", unpack(split, folder / "jpegs"), words, network.preprocessing)
    tutorial = TutorialCaptioner(raw.feature_dim, len(words)).to(device)
    sizes = DecoderConfig(feature_dim=raw.feature_dim, vocabulary_size=len(words), embedding_dim=EMBEDDING, hidden_dim=HIDDEN)
    ours = Captioner(sizes).to(device), Captioner(sizes).to(device)
    done = []
    for seed in range(s.repeats):
        streams = {
            "A": tutorial_steps(jpegs, plain, tutorial, device, batch_size=s.batch_size, workers=s.num_workers, seed=seed),
            "B": our_steps(raw.source, encoded, lambda batch: frozen(batch.images).half(), ours[0], device, s, seed),
            "C": our_steps(cached.source, encoded, lambda batch: batch.images, ours[1], device, s, seed),
        }
        for way, stream in streams.items():
            done.append(measure(way, stream, s.cached_steps if way == "C" else s.raw_steps, device))
            say("repeat {} of {}: {way}, {captions} captions in {seconds:.1f} s".format(seed + 1, s.repeats, **done[-1]))
    return summarize(s, done, split.images, table.captions, len(words), cache_seconds) | {
        "machine": machine("torch", "torchvision", "pillow", "pillow-simd")
        | {"torch_threads": torch.get_num_threads(), "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}
    }


def summarize(s: Settings, done: Sequence[dict[str, Any]], images: int, captions: int, words: int, cache_seconds: float) -> dict[str, Any]:
    """Medians with their spread, ratios of medians, and what an epoch and the cache cost."""
    ways = {}
    for way in WAYS:
        mine = [m for m in done if m["way"] == way]
        rates = {f"{unit}_per_second": [m[unit] / m["seconds"] for m in mine] for unit in ("images", "captions")}
        rates["seconds_per_epoch"] = [s.epoch_captions / rate for rate in rates["captions_per_second"]]
        ways[way] = {name: {"median": statistics.median(v), "min": min(v), "max": max(v)} for name, v in rates.items()}
    epoch = {way: ways[way]["seconds_per_epoch"]["median"] for way in WAYS}
    caching = cache_seconds / images * s.epoch_images
    shown = {name: value for name, value in asdict(s).items() if name not in ("images", "captions", "out")}
    return {
        "date": date.today().isoformat(),
        "settings": shown | {"dataset": "synth" if s.images is None else s.images.name, "weights": Path(s.weights).name},
        "data": {"images": images, "captions": captions, "vocabulary": words},
        "ways": ways,
        "caching": {"seconds": cache_seconds, "images_per_second": images / cache_seconds, "seconds_scaled": caching},
        "times_faster": {f"{a} over {b}": epoch[b] / epoch[a] for a, b in ("BA", "CA", "CB")},
        "break_even_epochs": {f"against {way}": caching / (epoch[way] - epoch["C"]) if epoch[way] > epoch["C"] else None for way in "AB"},
        "measurements": list(done),
    }


def markdown(report: dict[str, Any]) -> str:
    s, data, faster, caching = report["settings"], report["data"], report["times_faster"], report["caching"]

    def cell(value: dict[str, float]) -> str:
        return "{median:,.1f} ({min:,.1f} to {max:,.1f})".format(**value)

    def times(pair: str) -> str:
        return f"{faster[pair]:,.2f}" if pair in faster else "1" if pair[0] == pair[-1] else ""

    lines = [
        f"# Raw against cached training, {s['backbone']}, {report['date']}",
        "",
        f"{s['dataset']}: {data['images']} images, {data['captions']} captions, {data['vocabulary']} words; {s['weights']} weights, batches of "
        f"{s['batch_size']}. Median (min to max) of {s['repeats']} interleaved measurements of {s['raw_steps']} raw or {s['cached_steps']} cached "
        f"steps, after one step each. An epoch is scaled to {s['epoch_captions']:,} captions, the caching pass to {s['epoch_images']:,} images.",
        "",
        "| Way | images/s | captions/s | seconds per epoch | times as fast as A | times as fast as B |",
        "|---|---|---|---|---|---|",
    ]
    for way, name in WAYS.items():
        row = report["ways"][way]
        cells = [cell(row[column]) for column in ("images_per_second", "captions_per_second", "seconds_per_epoch")]
        lines.append(f"| {name} | {' | '.join(cells)} | {times(f'{way} over A')} | {times(f'{way} over B')} |")
    lines.append(f"| Caching, once | {caching['images_per_second']:,.1f} | | {caching['seconds_scaled']:,.1f} in all | | |")
    lines += ["", f"The caching pass took {caching['seconds']:.1f} s on this data.", ""]
    for against, epochs in report["break_even_epochs"].items():
        lines.append(f"- Break-even {against}: " + (f"after {epochs:.2f} epochs." if epochs is not None else "never; C is not faster."))
    lines += ["", machine_line(report["machine"]), ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it where --out says, and return the report."""
    settings = parse(argv)
    with tempfile.TemporaryDirectory(prefix="capstream-bench-") as folder:
        report = run(settings, Path(folder))
    write_report(settings.out, f"raw_vs_cached-{settings.backbone}-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
