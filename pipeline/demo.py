"""The whole way on the built-in dataset: synth, shard, vocab, cache-features, train, evaluate, caption.

Its network is random by default, because it must work offline. Averages over space of a deep random network's features tell
little of what stands where; AlexNet is shallow enough that colour and outline survive together, at its full 224 pixels.
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
from pipeline.captioning.caption import caption_images
from pipeline.captioning.captioner import CaptionerConfig
from pipeline.captioning.draw import draw_captions
from pipeline.captions.vocabulary import make_vocabulary
from pipeline.datasets.synthetic import named_pairs, synthesize
from pipeline.evaluation.evaluate import EvaluationSource, evaluate
from pipeline.evaluation.scoring import ScoringConfig
from pipeline.features.cache_features import CacheConfig, cache_features
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.shard import write_shards
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.train import train
from shards.atomic import disk_errors
from shards.caption_table import CaptionTable
from shards.errors import InputError, OccupiedError
from shards.features import feature_path, open_features

IMAGES = 4000
BACKBONES = {"random": "alexnet", "pretrained": "resnet152"}
SETTINGS: dict[str, Any] = {
    "epochs": 10,
    "batch_size": 128,
    "lr": 3e-3,
    "schedule": "cosine",
    "embedding_dim": 128,
    "hidden_dim": 256,
    "min_count": 1,
}
RAW_STEPS = 8
PICTURES = 12
PARTS = ("synth", "shards", "features", "run", "raw", "vocab.json", "scores.json", "captions.png")


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo reached.

    Attributes:
        rows: The table: (what, value).
        scores: Of the val split.
        pairs_right: Share of the val captions that name only colour-and-shape pairs that are in their drawing.
        control_scores, control_pairs: The same with the features of other drawings.
    """

    rows: tuple[tuple[str, str], ...]
    scores: dict[str, float]
    pairs_right: float
    control_scores: dict[str, float]
    control_pairs: float
    picture: Path
    run: Path
    example: Path

    def table(self) -> str:
        """The rows, aligned."""
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"  {name:<{width}}  {value}" for name, value in self.rows)


def demo(*, out: Path, images: int | None, weights: str, workers: int, device: str, say: Callable[[str], None]) -> DemoResult:
    """Run every stage into ``out`` and measure each.

    Args:
        out: A new or empty folder, or that of an earlier demo, which is made anew.
        images: Scenes to draw; ``IMAGES`` by default.
        weights: ``random``, or a published name of ResNet-152's weights.
        say: Takes a line for each stage.

    Raises:
        OccupiedError: ``out`` holds something else.
        InputError, ResourceError: As the stages say; published weights need the network.
    """
    _make_room(out)
    images = IMAGES if images is None else images
    backbone = BACKBONES["random" if weights == "random" else "pretrained"]
    whole, watch = Stopwatch(), Stopwatch()
    rows: list[tuple[str, str]] = []

    say(f"1/7 synth: drawing {images} scenes into {out / 'synth'}")
    counts = synthesize(out / "synth", images=images, workers=workers, quiet=False)
    rows.append(("synth", f"{images} images, {images / watch.lap():,.0f} images/s"))

    say(f"2/7 shard: into {out / 'shards'}")
    for split in ("train", "val"):
        write_shards(
            images=out / "synth" / "images",
            captions=out / "synth" / f"captions_{split}.json",
            out=out / "shards",
            split=split,
            config=ShardConfig(shard_size=500),
            workers=workers,
            quiet=False,
        )
    rows.append(("shard", f"{counts['train']} train and {counts['val']} val images, {images / watch.lap():,.0f} images/s"))

    say("3/7 vocab")
    vocabulary = make_vocabulary(shards=out / "shards", split="train", min_count=SETTINGS["min_count"], out=out / "vocab.json")
    rows.append(("vocab", f"{len(vocabulary.vocabulary)} words"))

    say(f"4/7 cache-features: {backbone}, weights {weights}")
    cached = cache_features(
        shards=out / "shards", out=out / "features", config=CacheConfig(backbone=backbone, weights=weights, device=device), quiet=False
    )
    rate = cached[0].images_per_second
    rows.append(("cache-features", f"{backbone} ({weights}), {cached[0].dim} features an image, {rate:,.0f} images/s"))

    say("5/7 train: from the cache, then a few steps from raw shards for comparison")
    watch.lap()
    cached_data = DataConfig(features=out / "features", vocab=out / "vocab.json")
    trained = train(out=out / "run", data=cached_data, settings=SETTINGS, runtime=RuntimeConfig(device=device, quiet=False))
    seconds = watch.lap()
    cached_epoch = trained.seconds_per_epoch or seconds
    train_table = open_features(feature_path(out / "features", "train")).table
    raw_data = DataConfig(shards=out / "shards", vocab=out / "vocab.json", backbone=backbone, weights=weights)
    raw = train(out=out / "raw", data=raw_data, settings=SETTINGS, max_steps=RAW_STEPS, runtime=RuntimeConfig(device=device))
    assert raw.captions_per_second is not None
    raw_epoch = train_table.captions / raw.captions_per_second
    rows.append(("train", f"{trained.steps} steps in {seconds:,.0f} s, loss {trained.loss or math.nan:.3f}"))
    rows.append(("an epoch from cache", f"{cached_epoch:,.1f} s ({train_table.captions / cached_epoch:,.0f} captions/s)"))
    rows.append(("an epoch from raw", f"{raw_epoch:,.1f} s (by its first {RAW_STEPS} steps): {raw_epoch / cached_epoch:,.1f} times as long"))

    say("6/7 evaluate: greedy captions of the val split")
    result = evaluate(
        CaptionerConfig(run=out / "run", device=device),
        EvaluationSource(features=out / "features"),
        scoring=ScoringConfig(java=False),
    )
    scores = {name: found.value for name, found in result.scores.scores.items()}
    val = open_features(feature_path(out / "features", "val")).table
    captions = [caption for _, _, caption in result.captions]
    pairs = pairs_share(captions, val)
    control, control_scores = shuffled(captions, val)
    control_pairs = pairs_share(control, val)
    rows.append(("BLEU-4, CIDEr on val", f"{scores['bleu_4']:.3f}, {scores['cider']:.2f}"))
    rows.append(("only true colour-and-shape pairs", f"{100 * pairs:.0f}% of the captions"))
    rows.append(("control: features shuffled", f"BLEU-4 {control_scores['bleu_4']:.3f}, {100 * control_pairs:.0f}% of the captions"))

    say("7/7 caption: some val photographs from their files")
    picture = out / "captions.png"
    shown = [str(out / "synth" / "images" / name) for name in val.file_names[:PICTURES]]
    captioned = caption_images(CaptionerConfig(run=out / "run", device=device), shown)
    references = [val.texts[int(i)] for i in (val.caption_counts.cumsum() - val.caption_counts)[:PICTURES]]
    draw_captions([(c.name, f"{c.captions[0].caption}\n(reference: {r})") for c, r in zip(captioned, references, strict=True)], picture)
    rows.append(("all together", f"{whole.lap():,.0f} s"))
    return DemoResult(
        rows=tuple(rows),
        scores=scores,
        pairs_right=pairs,
        control_scores=control_scores,
        control_pairs=control_pairs,
        picture=picture,
        run=out / "run",
        example=Path(shown[0]),
    )


def _make_room(out: Path) -> None:
    """Clear what an earlier demo made, and nothing else."""
    with disk_errors(out):
        if out.exists() and not out.is_dir():
            raise OccupiedError(f"{out}: is a file. Choose a folder for --out.")
        inside = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
        strangers = [name for name in inside if name not in PARTS and not name.startswith(".")]
        if strangers:
            raise OccupiedError(f"{out}: holds something else than a demo ({strangers[0]}). Choose a new folder for --out.")
        for name in inside:
            if name in PARTS:
                shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._began = self._began, time.perf_counter()
        return self._began - before


def pairs_share(captions: Sequence[str], table: CaptionTable) -> float:
    """Share of captions that name at least one colour-and-shape pair, and only such as their image's references name."""
    truth = [named_pairs(texts) for texts in table.reference_texts()]
    named = [named_pairs([caption]) for caption in captions]
    return sum(bool(n) and n <= t for n, t in zip(named, truth, strict=True)) / len(named)


def shuffled(captions: Sequence[str], table: CaptionTable) -> tuple[list[str], dict[str, float]]:
    """The control: every image with the caption of another image's features, and the scores of that."""
    if len(captions) < 2:
        raise InputError("A control needs at least two validation images: draw more.")
    order = list(range(len(captions)))
    random.Random(0).shuffle(order)  # noqa: S311 - a fixed shuffle, not a secret
    other = dict(zip(order, [*order[1:], order[0]], strict=True))  # one cycle: no image keeps its own features
    control = [captions[other[row]] for row in range(len(captions))]
    references = [list(map(ptb_tokens, texts)) for texts in table.reference_texts()]
    return control, corpus_scores(list(map(ptb_tokens, control)), references)
