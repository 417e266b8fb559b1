"""The run directory: what a training was, where it stands, and all that captioning needs of it.

config.json  vocab.json  metrics.jsonl  events.out.tfevents.*  backbone.safetensors (random weights only)
checkpoints/step-00000048/{model.safetensors, training.pt, state.json}    latest.json  best.json
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from model.decoder import Captioner, DecoderConfig
from model.vocabulary import Vocabulary
from pipeline.backbones import KEPT_FILE, Network
from pipeline.checkpoints import Position, Which, best_checkpoint, find_checkpoint, load_model
from pipeline.vocab import read_vocabulary, vocabulary_digest, write_vocabulary
from shards.atomic import read_own_json, write_json
from shards.errors import DamageError, InputError, MismatchError
from shards.tar import OnError

FORMAT_VERSION = 3
CONFIG_FILE, VOCABULARY_FILE, METRICS_FILE = "config.json", "vocab.json", "metrics.jsonl"
MAX_LR = 1e6
COUNTS = (
    "epochs",
    "min_count",
    "captions_per_image",
    "accumulate",
    "checkpoint_every",
    "keep_checkpoints",
    "val_images",
    "log_every",
    "embedding_dim",
    "hidden_dim",
    "layers",
)
CHOICES = {
    "schedule": ("constant", "cosine"),
    "precision": ("auto", "fp32", "bf16"),
    "augment": ("tutorial", "none"),
    "on_error": ("fail", "skip"),
}


def option(name: str) -> str:
    """A setting as it is written on the command line.

    >>> option("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training's settings; the defaults are the tutorial's recipe.

    Attributes:
        batch_size: Units per step, over all processes.
        precision: ``fp32`` or ``bf16`` arithmetic of the decoder, and of a frozen network that runs beside it; ``auto`` takes what
            the device does well, and a run records what that was.
        accumulate: Pieces of a batch that go through the decoder one after the other.
        checkpoint_every: Steps between checkpoints; None: by the clock alone.
        checkpoint_minutes: Minutes between checkpoints; 0: by the steps alone.
        keep_checkpoints: How many of the newest are kept, beside the best.
        val_images: How many images of the val split each validation looks at, spread over all of it.
        log_every: Steps between lines of the log.
    """

    epochs: int = 5
    batch_size: int = 128
    lr: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    seed: int = 0
    min_count: int = 4
    captions_per_image: int = 1
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    accumulate: int = 1
    checkpoint_every: int | None = None
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 3
    val_images: int = 5000
    log_every: int = 10
    augment: Literal["tutorial", "none"] = "tutorial"
    on_error: OnError = "fail"
    embedding_dim: int = 256
    hidden_dim: int = 512
    layers: int = 1

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{option(name)} {value}: must be at least 1.")
        if self.batch_size < 2:
            raise InputError(f"--batch-size {self.batch_size}: must be at least 2; BatchNorm cannot normalise a single image.")
        if not 0 < self.lr <= MAX_LR:
            raise InputError(f"--lr {self.lr}: must be greater than 0, and at most {MAX_LR:g}.")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: must not be negative.")
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise InputError(f"--checkpoint-minutes {self.checkpoint_minutes}: must be 0 (never by the clock) or more.")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{option(name)} {getattr(self, name)}: must be {', '.join(allowed[:-1])} or {allowed[-1]}.")

    def lr_at(self, step: int, total: int) -> float:
        """The learning rate of step ``step`` (from 0) of ``total``; cosine falls from ``lr`` to 0 (Loshchilov and Hutter, 2017, without restarts)."""
        return self.lr if self.schedule == "constant" else self.lr * 0.5 * (1 + math.cos(math.pi * step / total))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """``config.json``: settings, sizes, the network, and what the run was trained on."""

    train: TrainConfig
    decoder: DecoderConfig
    network: Network
    vocabulary_digest: str
    source: Literal["features", "shards"]
    data: str
    data_digest: str
    versions: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Run:
    """An opened run, ready to caption."""

    folder: Path
    config: RunConfig
    vocabulary: Vocabulary
    captioner: Captioner
    position: Position


def holds_run(folder: Path) -> bool:
    """Whether ``folder`` is a run directory."""
    return (folder / CONFIG_FILE).is_file()


def write_config(folder: Path, config: RunConfig, vocabulary: Vocabulary) -> None:
    """Commit what makes a folder a run: the vocabulary, then the config."""
    write_vocabulary(folder / VOCABULARY_FILE, vocabulary)
    write_json(folder / CONFIG_FILE, {"format_version": FORMAT_VERSION, **json.loads(json.dumps(asdict(config)))})


def read_config(folder: Path) -> tuple[RunConfig, Vocabulary]:
    """Read a run's config and vocabulary, and check that they belong together.

    Raises:
        InputError: Not a run.
        DamageError, MismatchError: Damaged, or not of one training.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder}: not a run (there is no {CONFIG_FILE}). Train one with: python cli.py train --out {folder}")
    content = read_own_json(path, what="run config", format_version=FORMAT_VERSION)
    try:
        config = RunConfig(
            train=TrainConfig(**content["train"]),
            decoder=DecoderConfig(**content["decoder"]),
            network=Network.parse(content["network"]),
            versions=dict(content["versions"]),
            **{name: content[name] for name in ("vocabulary_digest", "source", "data", "data_digest")},
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise DamageError(f"{path}: not a run's config ({error!r}).") from None
    vocabulary = read_vocabulary(folder / VOCABULARY_FILE)
    found = vocabulary_digest(vocabulary)
    if found != config.vocabulary_digest or len(vocabulary) != config.decoder.vocabulary_size:
        raise MismatchError(
            f"{folder / VOCABULARY_FILE}: this vocabulary ({len(vocabulary)} words, digest {found}) is not the one that the run was trained "
            f"with ({config.decoder.vocabulary_size} words, digest {config.vocabulary_digest}). Put the original file back."
        )
    return config, vocabulary


def open_run(folder: Path, *, device: torch.device, checkpoint: Which = "latest") -> Run:
    """Open a run in eval mode on ``device``.

    Args:
        checkpoint: ``latest``: the newest whole one; ``best``: the one whose captions scored best on the val split.

    Raises:
        InputError, DamageError, MismatchError: As the parts say.
    """
    config, vocabulary = read_config(folder)
    path, position, _ = find_checkpoint(folder)
    if checkpoint == "best":
        path, position = best_checkpoint(folder, position)
    captioner = Captioner(config.decoder)
    load_model(path, captioner)
    return Run(folder=folder, config=config, vocabulary=vocabulary, captioner=captioner.to(device).eval(), position=position)


def kept_weights(folder: Path) -> Path:
    """Where a run keeps weights that cannot be had again."""
    return folder / KEPT_FILE
