"""All stages in a row on the built-in dataset: synth, shard, vocab, cache-features, train, evaluate, caption.

The backbone has random weights by default, so that the demo works offline. A deep random network's features, averaged over space, say little
about the image. AlexNet is shallow enough that its features keep colours and outlines.
"""

import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.metrics import corpus_scores
from model.ptb import ptb_tokens
from pipeline.backbone.backbones import KEPT_FILE
from pipeline.captioning.caption import caption_images
from pipeline.captioning.captioner import CaptionerConfig
from pipeline.captioning.draw import draw_captions
from pipeline.captions.vocabulary import make_vocabulary
from pipeline.datasets.scene_captions import named_pairs
from pipeline.datasets.synthetic import synthesize
from pipeline.evaluation.evaluate import EvaluationSource, evaluate
from pipeline.evaluation.scoring import ScoringConfig
from pipeline.features.cache_features import CacheConfig, cache_features
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.shard import write_shards
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.train import train
from shards.atomic import disk_errors
from shards.caption_table import CaptionTable
from shards.errors import OccupiedError, SettingsError
from shards.features import feature_path, open_features

IMAGES = 2200
BACKBONES = {"random": "alexnet", "pretrained": "resnet152"}
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 64,
    "lr": 5e-3,
    "schedule": "cosine",
    "image_input": "every_step",
    "val_images": 100,
    "embedding_dim": 128,
    "hidden_dim": 256,
    "min_count": 1,
}
RAW_STEPS = 4
CAPTIONED_IMAGES = 12
FILES = ("synth", "shards", "features", "run", "raw", "vocab.json", "scores.json", "captions.png")

Row = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo runs, and where.

    Attributes:
        out: A new or empty folder, or that of an earlier demo, which is replaced.
        images: Number of scenes.
        weights: ``random``, or the name of published weights of ResNet-152, which are downloaded.
        workers: Processes that draw and shard.
        device: As for :func:`pipeline.execution.devices.pick_device`.
    """

    out: Path
    images: int = IMAGES
    weights: str = "random"
    workers: int = 1
    device: str = "auto"

    @property
    def backbone(self) -> str:
        return BACKBONES["random" if self.weights == "random" else "pretrained"]


@dataclass(frozen=True, kw_only=True)
class ValScores:
    """Scores of the captions of the val split.

    Attributes:
        metrics: Corpus scores by name.
        true_pairs: Fraction of the captions that name only colour-and-shape pairs of their scene, and at least one.
    """

    metrics: dict[str, float]
    true_pairs: float


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo reached.

    Attributes:
        rows: The table: (name, value).
        scores: Of the model's captions.
        control: The same with each image's features replaced by another image's.
        picture: The file with captioned scenes.
        run: The trained run.
        example: An image of the val split.
    """

    rows: tuple[Row, ...]
    scores: ValScores
    control: ValScores
    picture: Path
    run: Path
    example: Path

    def table(self) -> list[str]:
        """The rows, aligned."""
        width = max(len(name) for name, _ in self.rows)
        return [f"  {name:<{width}}  {value}" for name, value in self.rows]


class Stopwatch:
    """Measures laps: the seconds since it was made or last read."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        last, self._start = self._start, time.perf_counter()
        return self._start - last


def demo(config: DemoConfig, say: Callable[[str], None]) -> DemoResult:
    """Run and measure every stage.

    Args:
        say: Takes one line per stage.

    Raises:
        OccupiedError: ``out`` holds other files than a demo's.
        InputError, ResourceError: As the stages raise them. Published weights need the network.
    """
    out, stopwatch = config.out, Stopwatch()
    _clear(out)
    say(f"1/7 synth: drawing {config.images} scenes into {out / 'synth'}")
    rows = [_draw(config)]
    say(f"2/7 shard: writing {out / 'shards'}")
    rows += [_shard(config)]
    say("3/7 vocab: counting the words of the captions")
    vocabulary = make_vocabulary(shards=out / "shards", split="train", min_count=SETTINGS["min_count"], out=out / "vocab.json")
    rows += [("vocab", f"{len(vocabulary.vocabulary)} words")]
    say(f"4/7 cache-features: {config.backbone}, weights {config.weights}")
    rows += [_cache_features(config)]
    say("5/7 train: on the cached features, then a few steps on raw shards for comparison")
    rows += _train(config)
    say("6/7 evaluate: captioning the val split")
    captions, scores, control = _evaluate(config)
    rows += [
        ("BLEU-4, CIDEr on val", f"{scores.metrics['bleu_4']:.3f}, {scores.metrics['cider']:.2f}"),
        ("only true colour-and-shape pairs", f"{100 * scores.true_pairs:.0f}% of {len(captions)} captions"),
        ("control: features shuffled", f"BLEU-4 {control.metrics['bleu_4']:.3f}, {100 * control.true_pairs:.0f}% of the captions"),
    ]
    say("7/7 caption: captioning images of the val split from their files")
    example = _caption(config, say)
    rows += [("total", f"{stopwatch.lap():,.0f} s")]
    return DemoResult(rows=tuple(rows), scores=scores, control=control, picture=out / "captions.png", run=out / "run", example=example)


def _clear(out: Path) -> None:
    """Remove the files of an earlier demo, and nothing else."""
    with disk_errors(out):
        if out.exists() and not out.is_dir():
            raise OccupiedError(f"{out}: is a file. Choose a folder as `out`.")
        names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        others = [name for name in names if name not in FILES and not name.startswith(".")]
        if others:
            raise OccupiedError(f"{out}: holds other files than a demo's ({others[0]}). Choose a new folder as `out`.")
        for path in (out / name for name in names if name in FILES):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _draw(config: DemoConfig) -> Row:
    stopwatch = Stopwatch()
    synthesize(config.out / "synth", images=config.images, workers=config.workers, quiet=False)
    return ("synth", f"{config.images} images, {config.images / stopwatch.lap():,.0f} images/s")


def _shard(config: DemoConfig) -> Row:
    stopwatch, synth = Stopwatch(), config.out / "synth"
    stored = [
        write_shards(
            images=synth / "images",
            captions=synth / f"captions_{split}.json",
            out=config.out / "shards",
            split=split,
            config=ShardConfig(shard_size=500),
            workers=config.workers,
            quiet=False,
        ).images
        for split in ("train", "val")
    ]
    return ("shard", f"{stored[0]} train and {stored[1]} val images, {sum(stored) / stopwatch.lap():,.0f} images/s")


def _cache_features(config: DemoConfig) -> Row:
    cache_config = CacheConfig(backbone=config.backbone, weights=config.weights, device=config.device)
    cached = cache_features(shards=config.out / "shards", out=config.out / "features", config=cache_config, quiet=False)[0]
    network = f"{config.backbone} ({config.weights})"
    return ("cache-features", f"{network}, {cached.dim} features per image, {cached.images_per_second:,.0f} images/s")


def _train(config: DemoConfig) -> list[Row]:
    """Train on cached features, and measure a few steps on raw shards."""
    out, stopwatch = config.out, Stopwatch()
    cached_data = DataConfig(features=out / "features", vocab=out / "vocab.json")
    cached = train(out=out / "run", data=cached_data, settings=SETTINGS, runtime=RuntimeConfig(device=config.device, quiet=False))
    seconds = stopwatch.lap()
    if (out / "features" / KEPT_FILE).is_file():  # the same random weights, without calibrating them again
        (out / "raw").mkdir()
        shutil.copyfile(out / "features" / KEPT_FILE, out / "raw" / KEPT_FILE)
    raw_data = DataConfig(shards=out / "shards", vocab=out / "vocab.json", backbone=config.backbone, weights=config.weights)
    raw_settings = {**SETTINGS, "epochs": 1}
    raw = train(out=out / "raw", data=raw_data, settings=raw_settings, max_steps=RAW_STEPS, runtime=RuntimeConfig(device=config.device))
    assert raw.captions_per_second is not None
    captions = open_features(feature_path(out / "features", "train")).table.captions
    cached_epoch, raw_epoch = cached.seconds_per_epoch or seconds, captions / raw.captions_per_second
    return [
        ("train", f"{cached.steps} steps in {seconds:,.0f} s, loss {cached.loss or math.nan:.3f}"),
        ("an epoch on cached features", f"{cached_epoch:,.1f} s ({captions / cached_epoch:,.0f} captions/s)"),
        ("an epoch on raw shards", f"{raw_epoch:,.1f} s (estimated from {RAW_STEPS} steps): {raw_epoch / cached_epoch:,.1f} times as long"),
    ]


def _evaluate(config: DemoConfig) -> tuple[list[str], ValScores, ValScores]:
    """Greedy captions of the val split, their scores, and those of the control."""
    features = config.out / "features"
    captioner = CaptionerConfig(run=config.out / "run", device=config.device)
    result = evaluate(captioner, EvaluationSource(features=features), scoring=ScoringConfig(java=False))
    metrics = {name: score.value for name, score in result.scores.scores.items()}
    table = open_features(feature_path(features, "val")).table
    captions = [caption for _, _, caption in result.captions]
    scores = ValScores(metrics=metrics, true_pairs=true_pairs(captions, table))
    return captions, scores, shuffled_control(captions, table)


def _caption(config: DemoConfig, say: Callable[[str], None]) -> Path:
    """Caption some images of the val split from their files and draw them with their captions. Returns one of the images."""
    images = config.out / "synth" / "images"
    table = open_features(feature_path(config.out / "features", "val")).table
    shown = [images / name for name in table.file_names[:CAPTIONED_IMAGES]]
    captioned = caption_images(CaptionerConfig(run=config.out / "run", device=config.device), [str(path) for path in shown])
    references = [texts[0] for texts in table.reference_texts()[:CAPTIONED_IMAGES]]
    texts = [(image.name, f"{image.captions[0].caption}\n(reference: {text})") for image, text in zip(captioned, references, strict=True)]
    if problem := draw_captions(texts, config.out / "captions.png"):
        say(problem)
    return shown[0]


def true_pairs(captions: Sequence[str], table: CaptionTable) -> float:
    """Fraction of the captions that name at least one colour-and-shape pair, and only pairs that their image's references name."""
    truth = [named_pairs(texts) for texts in table.reference_texts()]
    named = [named_pairs([caption]) for caption in captions]
    return sum(bool(n) and n <= t for n, t in zip(named, truth, strict=True)) / len(named)


def shuffled_control(captions: Sequence[str], table: CaptionTable) -> ValScores:
    """Scores if every image gets the caption of another image, as it would with the other image's features.

    Raises:
        InputError: There are fewer than two captions.
    """
    if len(captions) < 2:
        raise SettingsError("The control needs at least two validation images. Increase `images`.")
    order = list(range(len(captions)))
    random.Random(0).shuffle(order)  # noqa: S311 - a fixed shuffle, not a secret
    other = dict(zip(order, [*order[1:], order[0]], strict=True))  # one cycle: no image keeps its own caption
    shuffled = [captions[other[row]] for row in range(len(captions))]
    references = [list(map(ptb_tokens, texts)) for texts in table.reference_texts()]
    metrics = corpus_scores(list(map(ptb_tokens, shuffled)), references)
    return ValScores(metrics=metrics, true_pairs=true_pairs(shuffled, table))
