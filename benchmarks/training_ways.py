"""The ways of training that :mod:`benchmarks.bench_train` measures: ours, the tutorial's and the limits. Each runs in its own process."""

import argparse
import itertools
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch import nn
from torch.nn import functional

from benchmarks.generated import WORDS, synchronized
from benchmarks.tutorial import EMBEDDING, HIDDEN, LEARNING_RATE, JpegFolder, TutorialCaptioner, tutorial_loader, tutorial_steps
from benchmarks.workload import Usage, run_command
from model.encoder import FrozenBackbone, with_crop
from model.networks import random_info
from model.preprocessing import Preprocessing
from pipeline.backbone.backbones import open_backbone
from pipeline.backbone.precision import decoder_precision
from pipeline.captions.vocabulary import read_vocabulary
from pipeline.execution.devices import pick_device, prepare_device
from pipeline.execution.executors import default_workers
from pipeline.loading.batches import EncodedCaptions, training_batches
from pipeline.loading.feature_source import FeatureSource
from pipeline.loading.order import epoch_order
from pipeline.loading.sources import ShardSource
from pipeline.sharding.read_samples import shard_samples
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.train import train
from shards.caption_table import table_of_split
from shards.dataset import Split, open_split
from shards.features import open_features

COCO_IMAGES = 82_783
CROP = 224
PRINTED_RATE = re.compile(r"\(([\d,.]+) images/s\)")  # what cache-features prints at its end, without start-up


def logged_rate(out: Path, skip: int) -> dict[str, float]:
    """Captions per second and share of time waiting for data, from a run's log, without its first steps."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = [line for line in lines if "mean_loss" in line and line["step"] > skip]
    return {
        "captions_per_second": statistics.harmonic_mean([line["captions_per_second"] for line in timed]),
        "data_wait": statistics.mean(line["data_wait"] for line in timed),
    }


def ours_cached(s: argparse.Namespace) -> dict[str, float]:
    out = Path(tempfile.mkdtemp(dir=s.work))
    settings = {"batch_size": s.batch_size, "log_every": 10}
    data, runtime = DataConfig(features=s.work / "features", vocab=s.work / "vocab.json"), RuntimeConfig(device=s.device)
    train(out=out, data=data, settings=settings, max_steps=10 + s.cached_steps, runtime=runtime)
    return logged_rate(out, skip=10)


def ours_raw(s: argparse.Namespace) -> dict[str, float]:
    out = Path(tempfile.mkdtemp(dir=s.work))
    settings, warm_up = {"batch_size": s.batch_size, "log_every": 1}, 1 + s.raw_warm_up
    weights = str(s.work / "weights.safetensors")
    data = DataConfig(shards=s.work / "shards", vocab=s.work / "vocab.json", backbone=s.backbone, weights=weights)
    train(out=out, data=data, settings=settings, max_steps=warm_up + s.raw_steps, runtime=RuntimeConfig(device=s.device))
    return logged_rate(out, skip=warm_up)


def timed(steps: Iterator[int], warm_up: int, count: int, device: torch.device) -> dict[str, float]:
    """Captions per second of ``count`` steps, after ``warm_up`` untimed ones. Each step yields its number of captions."""
    for _ in range(warm_up):
        next(steps)
    started = synchronized(device)
    captions = sum(itertools.islice(steps, count))
    return {"captions_per_second": captions / (synchronized(device) - started)}


def tutorial_network(s: argparse.Namespace, split: Split, device: torch.device) -> FrozenBackbone:
    weights, resize = str(s.work / "weights.safetensors"), split.config["resize"]
    _, frozen = open_backbone(backbone=s.backbone, weights=weights, resize=resize, kept=s.work / "none", sample=lambda _: [])
    return frozen.to(device)


def shard_preprocessing(split: Split) -> Preprocessing:
    """Preprocessing with crops of 224 from a split's images, for loading without a network."""
    return with_crop(random_info(CROP), **{name: split.config["resize"][name] for name in ("size", "mode", "filter")})


def jpeg_folder(s: argparse.Namespace, preprocessing: Preprocessing) -> JpegFolder:
    pairs = [(name, text) for name, text in json.loads((s.work / "pairs.json").read_text())]
    return JpegFolder(s.work / "jpegs", pairs, read_vocabulary(s.work / "vocab.json"), preprocessing)


def tutorial_raw(s: argparse.Namespace) -> dict[str, float]:
    device = pick_device(s.device)
    frozen = tutorial_network(s, open_split(s.work / "shards", "train"), device)
    network = frozen.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    captioner = TutorialCaptioner(network(torch.zeros(1, 3, 224, 224, device=device)).shape[1], WORDS).to(device)
    data = jpeg_folder(s, frozen.preprocessing)
    next(tutorial_steps(data, network, captioner, device, batch_size=min(8, s.batch_size), workers=0, seed=1))
    steps = tutorial_steps(data, network, captioner, device, batch_size=s.batch_size, workers=default_workers(), seed=0)
    return timed((captions for _, captions in steps), s.raw_warm_up, s.raw_steps, device)


def ours_caching(s: argparse.Namespace) -> dict[str, float]:
    """Images/s of the whole command, and of its pass as the command prints it; seconds for COCO's training images."""
    weights = ("--weights", s.work / "weights.safetensors", "--device", s.device, "--split", "some")
    out = Path(tempfile.mkdtemp(dir=s.work))
    usage = run_command("cache-features", "--shards", s.work / "shards", "--out", out, "--backbone", s.backbone, *weights)
    return caching_rates(usage, open_split(s.work / "shards", "some").images)


def caching_rates(usage: Usage, images: int) -> dict[str, float]:
    """The time of a ``cache-features`` command, split into start-up (and end) and the pass over its images."""
    printed = PRINTED_RATE.search(usage.output)
    assert printed is not None, usage.output
    steady = float(printed[1].replace(",", ""))
    start_up = usage.seconds - images / steady
    return {
        "images_per_second": images / usage.seconds,
        "start_up_seconds": start_up,
        "steady_images_per_second": steady,
        "coco_seconds": start_up + COCO_IMAGES / steady,
    }


def tutorial_decoder(s: argparse.Namespace) -> dict[str, float]:
    device = pick_device(s.device)
    file = open_features(s.work / "features" / "train.h5")
    source, encoded = FeatureSource(file, device=device), EncodedCaptions(file.table, read_vocabulary(s.work / "vocab.json"), device)
    read = training_batches(source, encoded, seed=0, epoch=0, batch_size=s.batch_size)
    batches = [
        (b.images[b.unit_rows].squeeze(1).float().to(device), b.tokens[:, :-1], b.caption_lengths.tolist(), b.tokens)
        for b in itertools.islice(read, 20)
    ]
    captioner, criterion = TutorialCaptioner(s.feature_dim, WORDS).to(device), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(captioner.parameters(), lr=LEARNING_RATE)

    def steps() -> Iterator[int]:
        for features, words, lengths, tokens in itertools.cycle(batches):
            targets = nn.utils.rnn.pack_padded_sequence(tokens, lengths, batch_first=True).data
            optimizer.zero_grad()
            criterion(captioner(features, words, lengths), targets).backward()
            optimizer.step()
            yield len(lengths)

    return timed(steps(), 3, max(3, s.cached_steps // 2), device)


def tutorial_loading(s: argparse.Namespace) -> dict[str, float]:
    split = open_split(s.work / "shards", "train")
    data = jpeg_folder(s, shard_preprocessing(split))

    def steps() -> Iterator[int]:
        for seed in itertools.count():
            for _, _, lengths in tutorial_loader(data, batch_size=s.batch_size, workers=default_workers(), seed=seed):
                yield len(lengths)

    return timed(steps(), 4, s.loading_batches, torch.device("cpu"))


def ours_loading(s: argparse.Namespace) -> dict[str, float]:
    prepare_device(torch.device("cpu"))
    split = open_split(s.work / "shards", "train")
    content = table_of_split(split)
    source = ShardSource(split, content, shard_preprocessing(split), "tutorial")
    encoded = EncodedCaptions(content, read_vocabulary(s.work / "vocab.json"))

    def steps() -> Iterator[int]:
        for epoch in itertools.count():
            for batch in training_batches(source, encoded, seed=0, epoch=epoch, batch_size=s.batch_size):
                yield len(batch.captions)

    return timed(steps(), 4, s.loading_batches, torch.device("cpu"))


def bare_decoding(s: argparse.Namespace) -> dict[str, float]:
    split = open_split(s.work / "shards", "train")
    order = epoch_order(table_of_split(split), seed=0, epoch=0)
    jpegs = [jpeg for shard in split.shards for _, jpeg, _ in shard_samples(shard)]

    def batch(number: int) -> int:
        target, buffer = np.empty((s.batch_size, 224, 224, 3), np.uint8), np.empty((256, 256, 3), np.uint8)
        for place in range(s.batch_size):
            row = int(order.image_rows[(number * s.batch_size + place) % order.units])
            target[place] = simplejpeg.decode_jpeg(jpegs[row], "RGB", buffer=buffer)[16:240, 16:240]
        return len(target)

    with ThreadPoolExecutor(default_workers()) as pool:
        list(pool.map(batch, range(4)))
        started = time.perf_counter()
        captions = sum(pool.map(batch, range(s.loading_batches)))
        return {"captions_per_second": captions / (time.perf_counter() - started)}


def matrix_products(s: argparse.Namespace) -> dict[str, float]:
    """The matrix products of the vocabulary projection and of the LSTM's two inputs, forward and backward, each as one large product."""
    device = pick_device(s.device)
    prepare_device(device)
    kind = torch.bfloat16 if decoder_precision("auto", device) == "bf16" else torch.float32
    tokens = round(s.batch_size * tokens_per_caption(s.work))

    def product(rows: int, inner: int, outer: int) -> Callable[[], Any]:
        inputs, weight, grad = (torch.randn(shape, device=device).to(kind) for shape in ((rows, inner), (outer, inner), (rows, outer)))
        return lambda: (functional.linear(inputs, weight), grad @ weight, grad.T @ inputs)

    products = [product(tokens, HIDDEN, WORDS), product(tokens, EMBEDDING, 4 * HIDDEN), product(tokens, HIDDEN, 4 * HIDDEN)]

    def steps() -> Iterator[int]:
        while True:
            for multiply in products:
                multiply()
            yield s.batch_size

    return timed(steps(), 3, s.cached_steps, device)


def tokens_per_caption(work: Path) -> float:
    """Mean tokens per caption in the feature file: words, <start> and <end>."""
    return float(np.diff(open_features(work / "features" / "train.h5").table.offsets).mean()) + 2


WAYS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "tutorial raw": tutorial_raw,
    "ours raw": ours_raw,
    "tutorial decoder": tutorial_decoder,
    "ours cached": ours_cached,
    "ours caching": ours_caching,
    "tutorial loading": tutorial_loading,
    "ours loading": ours_loading,
    "bare decoding": bare_decoding,
    "matrix products": matrix_products,
}
