"""How fast is training on raw images and on cached features, and how long does an epoch of COCO take?

The ways take turns (A B C D ..., A B C D ...), each in its own process, with one caption per unit and the tutorial's sizes (embedding 256,
hidden 512, 9,956 words, batches of 128):

    tutorial raw       a folder of JPEGs, a DataLoader, the frozen network in float32 at every step, Adam
    ours raw           pipeline.training.train on shards, as `train --shards` runs it
    tutorial decoder   the tutorial's decoder step in float32, on features and tokens that are already in memory
    ours cached        pipeline.training.train on a feature file, as `train --features` runs it, with reading, gathering and logging
    ours caching       the whole `cache-features` command, whose time cached training has to save first. From the images/s that the command
                       prints follow its start-up time and its time for COCO
    tutorial loading   the DataLoader alone
    ours loading       our batches of pixels alone
    bare decoding      simplejpeg from memory into one buffer, and a crop into the batch, in as many threads: the limit of loading
    matrix products    the decoder's matrix products alone, in our precision: the limit of cached training

The feature file has COCO's size: 82,783 images with random features and 414,113 captions, whose lengths are those of real captions and whose
words follow a Zipf distribution. The images are real ones, replicated as hard links. No figure includes start-up or the first steps, which
use batches that were decoded in advance, or compile. The tutorial's raw way warms up on a small batch, because a full one takes long;
--raw-warm-up adds full ones.

    python -m benchmarks.bench_train --out benchmarks/results
"""

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.generated import WORDS, write_generated, write_words
from benchmarks.machine import device_name, machine, machine_line, spread, table, write_report
from benchmarks.training_ways import COCO_IMAGES, WAYS, tokens_per_caption
from benchmarks.tutorial import MIN_COUNT, unpack
from benchmarks.workload import measured_apart, run_command, say, shard_images, take_turns, write_weights
from model.vocabulary import SPECIAL
from pipeline.backbone.precision import decoder_precision
from pipeline.captions.english import tokenize
from pipeline.captions.vocabulary import read_vocabulary
from pipeline.execution.devices import pick_device
from shards.caption_table import CaptionTable, table_of_split
from shards.dataset import open_split
from shards.features import open_features

COCO_CAPTIONS = 414_113
CAPTIONS = "captions_per_second"
LENGTHS = Path("../shared/data/coco-captions/captions_val2017.json")
RATIOS = (
    ("ours cached", "tutorial decoder"),
    ("ours cached", "ours raw"),
    ("ours cached", "tutorial raw"),
    ("ours raw", "tutorial raw"),
    ("ours cached", "matrix products"),
    ("ours loading", "tutorial loading"),
    ("ours loading", "bare decoding"),
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of raw and cached training.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("../shared/data/coco-cc"), help="folder with images/ and captions.json (COCO)")
    parser.add_argument(
        "--lengths",
        type=Path,
        default=Path("../shared/data/coco-captions/captions_val2017.json"),
        help="COCO caption file, for captions' lengths",
    )
    parser.add_argument("--backbone", default="resnet152", help="torchvision's name of a classification network")
    parser.add_argument("--num-images", type=int, default=2000, help="replicated images")
    parser.add_argument("--cache-images", type=int, default=2000, help="how many of these images are cached")
    parser.add_argument("--feature-images", type=int, default=COCO_IMAGES, help="images in the feature file, with about five captions each")
    parser.add_argument("--feature-dim", type=int, default=2048, help="features per image in the feature file")
    parser.add_argument("--batch-size", type=int, default=128, help="captions per step")
    parser.add_argument("--raw-steps", type=int, default=3, help="timed steps of the raw ways")
    parser.add_argument("--raw-warm-up", type=int, default=1, help="untimed full steps of the raw ways (ours: one more)")
    parser.add_argument("--cached-steps", type=int, default=60, help="timed steps of the cached ways")
    parser.add_argument("--loading-batches", type=int, default=60, help="timed batches of the loading ways")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--ways", nargs="*", default=None, help="measure only these ways")
    parser.add_argument("--measure", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None, help="folder for a dated JSON and Markdown report")
    settings = parser.parse_args(argv)
    if not (settings.images / "captions.json").is_file():
        parser.error(f"--images {settings.images}: holds no captions.json")
    return settings


def prepare(s: argparse.Namespace, work: Path) -> None:
    """Shards, their images as plain files, weights, a vocabulary of the tutorial's size, and a feature file of COCO's."""
    split = shard_images(s.images, work, s.num_images)
    source, some = work / "source", ("--split", "some", "--limit", min(s.cache_images, s.num_images))
    run_command("shard", "--images", source / "images", "--captions", source / "captions.json", "--out", work / "shards", *some)
    (work / "pairs.json").write_text(json.dumps(unpack(split, work / "jpegs")))
    write_weights(split, s.backbone, work / "weights.safetensors")
    write_words(work / "vocab.json", table_of_split(split), min_count=MIN_COUNT)
    say(f"preparing features of {s.feature_images} images")
    write_feature_file(s, work)


def write_feature_file(s: argparse.Namespace, work: Path) -> None:
    """Write non-negative random features, and captions of real lengths whose words follow Zipf's law."""
    draw = np.random.default_rng(0)
    if s.lengths.is_file():
        texts = [annotation["caption"] for annotation in json.loads(s.lengths.read_text())["annotations"][:5000]]
        known = np.array([len(tokenize(text)) for text in texts])
    else:
        known = np.clip(np.round(draw.normal(11.3, 2.4, 5000)), 6, 50).astype(np.int64)
    captions = round(s.feature_images * COCO_CAPTIONS / COCO_IMAGES)
    rows = np.sort(np.concatenate([np.arange(s.feature_images), draw.integers(0, s.feature_images, captions - s.feature_images)]))
    offsets = np.concatenate([[0], np.cumsum(draw.choice(known, captions))])
    chances = 1 / np.arange(1, WORDS - len(SPECIAL) + 1)
    shard_images = np.full(-(-s.feature_images // 1000), 1000)
    shard_images[-1] -= shard_images.sum() - s.feature_images
    vocabulary = read_vocabulary(work / "vocab.json")
    content = CaptionTable(
        keys=tuple(f"{n:09d}" for n in range(s.feature_images)),
        image_ids=np.arange(s.feature_images),
        file_names=tuple(f"{n}.jpg" for n in range(s.feature_images)),
        shard_images=shard_images,
        words=vocabulary.words[len(SPECIAL) :],
        tokens=draw.choice(len(chances), int(offsets[-1]), p=chances / chances.sum()).astype(np.int32),
        offsets=offsets,
        image_rows=rows.astype(np.int32),
        caption_ids=np.arange(captions),
        texts=("",) * captions,
        language=vocabulary.language,
    )
    features = np.abs(draw.standard_normal((s.feature_images, s.feature_dim), dtype=np.float32)).astype(np.float16)
    write_generated(work / "features", features, content)


def in_a_process(s: argparse.Namespace, work: Path, way: str) -> dict[str, float]:
    """One measurement in its own process."""
    names = ("backbone", "feature_dim", "batch_size", "raw_steps", "raw_warm_up", "cached_steps", "loading_batches", "device", "images")
    return measured_apart("benchmarks.bench_train", {name: getattr(s, name) for name in names}, work, way)


def speed(s: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Measure all ways in turns."""
    prepare(s, work)
    ways = [way for way in WAYS if s.ways is None or way in s.ways]
    return summary(s, work, take_turns({way: partial(in_a_process, s, work, way) for way in ways}, s.repeats))


def summary(s: argparse.Namespace, work: Path, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Rates, ratios, times of epochs, when the cache pays off, and disk space, from measurements in turns."""
    rates = {way: [run[CAPTIONS] for run in runs] for way, runs in found.items() if CAPTIONS in runs[0]}
    medians = {way: statistics.median(values) for way, values in rates.items()}
    epoch_seconds = {way: COCO_CAPTIONS / rate for way, rate in medians.items()}
    report: dict[str, Any] = {
        "rates": rates,
        "medians": medians,
        "epoch_seconds": epoch_seconds,
        "ratios": {f"{one} / {other}": medians[one] / medians[other] for one, other in RATIOS if one in medians and other in medians},
        "data_wait": {way: statistics.median(run["data_wait"] for run in runs) for way, runs in found.items() if "data_wait" in runs[0]},
        "tokens_per_caption": tokens_per_caption(work),
        "precision": decoder_precision("auto", pick_device(s.device)),
        "disk": disk(work),
    }
    if "ours caching" in found:
        caching = {key: [run[key] for run in found["ours caching"]] for key in found["ours caching"][0]}
        report |= {"caching": caching, "break_even_epochs": break_even(epoch_seconds, statistics.median(caching["coco_seconds"]))}
    return report


def disk(work: Path) -> dict[str, dict[str, float]]:
    """Bytes on the disk of the images, their resized JPEGs, the shards with their sidecars, and the feature file with its captions."""
    files = {
        "images": (work / "source" / "images").iterdir(),
        "folder of JPEGs": (work / "jpegs").iterdir(),
        "shards": (work / "shards").glob("train-*"),
        "feature file": (work / "features").glob("train.h5"),
    }
    sizes = {name: sum(path.stat().st_size for path in paths) for name, paths in files.items()}
    images = {name: open_split(work / "shards", "train").images for name in sizes}
    images["feature file"] = len(open_features(work / "features" / "train.h5").table.keys)
    return {name: {"bytes": size, "images": images[name], "bytes_per_image": size / images[name]} for name, size in sizes.items()}


def break_even(epoch_seconds: dict[str, float], cache_seconds: float) -> dict[str, float]:
    """The number of epochs after which caching COCO has saved its own time, compared with each raw way."""
    cached = epoch_seconds.get("ours cached", math.inf)
    raw = {way: epoch_seconds[way] for way in ("tutorial raw", "ours raw") if way in epoch_seconds}
    return {way: cache_seconds / (seconds - cached) for way, seconds in raw.items() if seconds > cached}


def markdown(report: dict[str, Any]) -> str:
    s = report["settings"]
    lines = [
        f"# Training, {s['backbone']}, {report['date']}",
        "",
        f"Batches of {s['batch_size']}, one caption per unit, {report['tokens_per_caption']:.1f} tokens per caption, ours in "
        f"{report['precision']}. Medians (min to max) of {s['repeats']} interleaved measurements; warm page cache.",
        "",
        *summary_lines(report),
    ]
    return "\n".join([*lines, "", machine_line(report["machine"]), ""])


def summary_lines(report: dict[str, Any]) -> list[str]:
    """The result of :func:`summary` as Markdown."""
    seconds = report["epoch_seconds"]
    rows = [[way, spread(values), f"{seconds[way]:,.0f}", f"{seconds[way] / 3600:.2f}"] for way, values in report["rates"].items()]
    lines = [
        *table(["Method", "captions/s", f"s per COCO epoch ({COCO_CAPTIONS:,})", "hours"], rows),
        "",
        *table(["Ratio", "Value"], [[name, f"{value:.2f}"] for name, value in report["ratios"].items()]),
        "",
        *(f"{way}: {100 * value:.2f}% of the time is spent waiting for data." for way, value in report["data_wait"].items()),
    ]
    if "caching" in report:
        caching = report["caching"]
        hours = statistics.median(caching["coco_seconds"]) / 3600
        paid = ", ".join(f"{epochs:.2f} epochs compared with {way}" for way, epochs in report["break_even_epochs"].items())
        lines += [
            "",
            f"Caching: {spread(caching['steady_images_per_second'])} images/s after {spread(caching['start_up_seconds'])} s of "
            f"start-up; {hours:.1f} hours for COCO's {COCO_IMAGES:,} images. The cache pays off after {paid}.",
        ]
    rows = [
        [name, f"{d['bytes_per_image']:,.0f}", f"{d['images']:,}", f"{d['bytes_per_image'] * COCO_IMAGES / 1e9:.2f}"]
        for name, d in report["disk"].items()
    ]
    return [*lines, "", *table(["On the disk", "Bytes per image", "Images", f"GB for COCO's {COCO_IMAGES:,} images"], rows)]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table, write it to ``--out``, and return the report."""
    settings = parse(argv)
    if settings.measure is not None:
        print(json.dumps(WAYS[settings.measure](settings)))
        return {}
    settings.images = settings.images.resolve()
    with tempfile.TemporaryDirectory(prefix="capstream-bench-") as folder:
        report = speed(settings, Path(folder))
    device = pick_device(settings.device)
    names = (
        "backbone",
        "num_images",
        "cache_images",
        "feature_images",
        "feature_dim",
        "batch_size",
        "raw_steps",
        "raw_warm_up",
        "cached_steps",
        "repeats",
    )
    report |= {
        "date": date.today().isoformat(),
        "settings": {name: getattr(settings, name) for name in names},
        "machine": machine("torch", "torchvision", "simplejpeg", "pillow", "pillow-simd")
        | {"torch_threads": torch.get_num_threads(), "device": device_name(device)},
    }
    write_report(settings.out, f"bench_train-{settings.backbone}-{report['date']}", report, markdown(report))
    return report


if __name__ == "__main__":
    main()
