"""``train``: train a captioning model."""

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.console.command import command
from pipeline.console.errors import INTERRUPTED, TERMINATED, print_note
from pipeline.console.options import PATH, device_option
from pipeline.console.shard_options import ShardCache, shards_options
from pipeline.console.training_options import training_options
from pipeline.execution.messages import print_next_step, print_result
from shards.paths import Location, shell_quoted

if TYPE_CHECKING:
    from pipeline.training.loop import TrainSummary


@command(
    "train",
    "python cli.py train --features data/features --out runs/first",
    "python cli.py train --shards data/shards --backbone resnet152 --out runs/raw",
    "python cli.py train --out runs/first --resume --epochs 8",
    "torchrun --nproc-per-node=2 cli.py train --features data/features --out runs/two --batch-size 256",
)
@click.option("--features", type=PATH, default=None, help="Folder of cached features: train.h5, and optionally val.h5.")
@shards_options("Folder or URL of shards, to train on raw images: they pass through the frozen backbone in every step.")
@click.option("--out", type=PATH, required=True, help="Folder of the run.")
@click.option("--vocab", type=PATH, default=None, show_default="built from the train captions", help="Vocabulary file.")
@click.option(
    "--config",
    "config_file",
    type=PATH,
    default=None,
    help="TOML file of settings: the options from --recipe on. Options that are given override it.",
)
@click.option(
    "--from",
    "init_from",
    type=PATH,
    default=None,
    show_default="random weights",
    help="Run whose best weights initialize the model. Its architecture and vocabulary are used too.",
)
@click.option("--backbone", default=None, show_default="resnet152", help="With --shards: the frozen backbone.")
@click.option(
    "--weights",
    default=None,
    show_default="IMAGENET1K_V1, or else the network's first published weights",
    help="With --shards: weights of the backbone, as for cache-features.",
)
@click.option("--resume", is_flag=True, help="Resume the run in --out, or start it if there is none.")
@click.option("--workers", type=click.IntRange(1), default=None, show_default="number of cores", help="With --shards: image decoding threads.")
@click.option(
    "--feature-memory",
    type=click.FloatRange(min=0),
    default=None,
    show_default="half of the available memory",
    help="GB of memory for cached features. Larger ones are read from their file while they are needed.",
)
@device_option
@training_options
def train(
    features: Path | None,
    shards: Location | None,
    shard_cache: ShardCache,
    out: Path,
    vocab: Path | None,
    config_file: Path | None,
    init_from: Path | None,
    backbone: str | None,
    weights: str | None,
    resume: bool,
    workers: int | None,
    feature_memory: float | None,
    device: str,
    settings: dict[str, Any],
) -> None:
    """Train a captioning model. It is trained on cached features, or on raw images from shards."""
    from pipeline.training.config import DataConfig, RuntimeConfig
    from pipeline.training.interruption import Interrupted
    from pipeline.training.train import train

    try:
        summary = train(
            out=out,
            data=DataConfig(
                features=features,
                shards=shard_cache.local_or_none(shards),
                vocab=vocab,
                backbone=backbone,
                weights=weights,
                shard_cache=shard_cache.folder,
                shard_cache_bytes=shard_cache.max_bytes,
            ),
            settings=settings,
            config_file=config_file,
            init_from=init_from,
            resume=resume,
            runtime=RuntimeConfig(
                device=device,
                workers=workers,
                feature_memory_bytes=None if feature_memory is None else int(feature_memory * 1e9),
                quiet=False,
            ),
        )
    except Interrupted as interrupted:
        if _is_main_process():
            print_note(f"{interrupted} Resume with: python cli.py train --out {shell_quoted(out)} --resume")
        sys.exit(TERMINATED if interrupted.signal is signal.SIGTERM else INTERRUPTED)
    if _is_main_process():
        _print_summary(out, summary)


def _is_main_process() -> bool:
    """Whether this process prints: under torchrun, only the first one does."""
    return os.environ.get("RANK", "0") == "0"


def _print_summary(out: Path, summary: "TrainSummary") -> None:
    for line in summary.notes:
        print_note(line)
    val = f", on val {summary.val_loss:.4f}" if summary.val_loss is not None else ""
    best = f"; best CIDEr on val {summary.best.cider:.3f}, after step {summary.best.step}" if summary.best is not None else ""
    loss = f"; loss {summary.loss:.4f}{val}{best}" if summary.loss is not None else "; nothing left to do"
    print_result(f"{out}: trained to step {summary.steps}{loss}.")
    run = shell_quoted(out)
    print_next_step(f"python cli.py evaluate --run {run}{'' if val else ' --split train'}, or python cli.py caption --run {run} IMAGE.jpg")
