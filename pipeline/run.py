"""The run directory: what a training was, where it stands, and all that captioning needs of it.

config.json  vocab.json  metrics.jsonl  events.out.tfevents.*  backbone.safetensors (random weights only)
checkpoints/step-00000048/{model.safetensors, training.pt, state.json}    latest.json  best.json
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from model.decoder import Captioner, DecoderConfig, Ensemble, ImageInput
from model.vocabulary import Vocabulary
from pipeline.backbones import KEPT_FILE, Network
from pipeline.checkpoints import Position, Which, best_checkpoint, find_checkpoint, load_average, load_model
from pipeline.vocab import read_vocabulary, vocabulary_digest, write_vocabulary
from shards.atomic import read_own_json, write_json
from shards.errors import DamageError, InputError, MismatchError
from shards.tar import OnError

FORMAT_VERSION = 4
CONFIG_FILE, VOCABULARY_FILE, METRICS_FILE = "config.json", "vocab.json", "metrics.jsonl"
MAX_LR = 1e6
MAX_COUNT = 2**31 - 1
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
    "lr_decay_epochs",
    "own_words_epochs",
    "patience",
    "samples",
    "average_last",
)
SHARES = ("feature_dropout", "input_dropout", "output_dropout", "label_smoothing", "own_words")
OF_CROSS_ENTROPY = ("label_smoothing", "own_words", "accumulate")
CHOICES = {
    "schedule": ("constant", "step", "cosine"),
    "image_input": ("once", "every_step"),
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
        recipe: The recipe that the settings came from; what else was said stands in its field.
        batch_size: Units per step, over all processes.
        lr: The learning rate of Adam (Kingma and Ba, 2015); with ``weight_decay`` that of AdamW (Loshchilov and Hutter, 2019).
        schedule: ``constant``; ``step``: times ``lr_decay`` after every ``lr_decay_epochs`` epochs; ``cosine``: down to 0 (Loshchilov and
            Hutter, 2017, without restarts).
        warmup_steps: Steps in which the rate rises to what the schedule says (Goyal et al., 2017).
        weight_decay: What all weights of matrices lose each step, times the learning rate; biases and BatchNorm's scales lose nothing.
        clip_norm: The gradients' norm is cut to this (Pascanu et al., 2013); 0: never.
        label_smoothing, own_words: As for :meth:`model.decoder.Captioner.forward`. The share of own words rises evenly from 0 over the
            first ``own_words_epochs`` epochs.
        patience: End after so many epochs without better captions of val; None: never.
        average_last: In the last so many epochs the weights that caption are the mean of those at the ends of these epochs
            (Izmailov et al., 2018, "Averaging weights leads to wider optima and better generalization"); None: the newest ones.
        self_critical: Train for CIDEr-D of drawn captions (Rennie et al., 2017; see :mod:`pipeline.self_critical`) instead of cross-entropy.
        samples: Captions that self-critical training draws of each image.
        precision: ``fp32`` or ``bf16`` arithmetic of the decoder, and of a frozen network that runs beside it; ``auto`` takes what
            the device does well, and a run records what that was.
        accumulate: Pieces of a batch that go through the decoder one after the other.
        checkpoint_every: Steps between checkpoints; None: by the clock alone.
        checkpoint_minutes: Minutes between checkpoints; 0: by the steps alone.
        keep_checkpoints: How many of the newest are kept, beside the best.
        val_images: How many images of the val split each validation looks at, spread over all of it.
        log_every: Steps between lines of the log.
    """

    recipe: str = "tutorial"
    epochs: int = 5
    batch_size: int = 128
    lr: float = 1e-3
    schedule: Literal["constant", "step", "cosine"] = "constant"
    lr_decay: float = 0.8
    lr_decay_epochs: int = 3
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    label_smoothing: float = 0.0
    own_words: float = 0.0
    own_words_epochs: int = 10
    patience: int | None = None
    average_last: int | None = None
    self_critical: bool = False
    samples: int = 5
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
    image_input: ImageInput = "once"
    feature_dropout: float = 0.0
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    tie_weights: bool = False

    def __post_init__(self) -> None:
        for name in COUNTS:
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_COUNT:
                raise InputError(f"{option(name)} {value}: must be at least 1, and at most {MAX_COUNT}.")
        if self.batch_size < 2:
            raise InputError(f"--batch-size {self.batch_size}: must be at least 2; BatchNorm cannot normalise a single image.")
        if not 0 < self.lr <= MAX_LR:
            raise InputError(f"--lr {self.lr}: must be greater than 0, and at most {MAX_LR:g}.")
        for name in ("seed", "warmup_steps", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) <= MAX_COUNT:
                raise InputError(f"{option(name)} {getattr(self, name)}: must not be negative, and at most {MAX_COUNT}.")
        for name in SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{option(name)} {getattr(self, name)}: must be at least 0 and below 1.")
        if not 0 < self.lr_decay <= 1:
            raise InputError(f"--lr-decay {self.lr_decay}: must be greater than 0, and at most 1.")
        for name in OF_CROSS_ENTROPY if self.self_critical else ():
            if getattr(self, name) != getattr(type(self), name):
                raise InputError(f"{option(name)} {getattr(self, name)}: --self-critical would not use it. Leave it away.")
        if self.self_critical and self.samples < 2:
            raise InputError(f"--samples {self.samples}: must be at least 2; each caption is compared with the others of its image.")
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise InputError(f"--checkpoint-minutes {self.checkpoint_minutes}: must be 0 (never by the clock) or more.")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{option(name)} {getattr(self, name)}: must be {', '.join(allowed[:-1])} or {allowed[-1]}.")

    def lr_at(self, step: int, per_epoch: int) -> float:
        """The learning rate of step ``step``, counted from 0, of ``per_epoch`` in an epoch."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.schedule == "step":
            return self.lr * warm * self.lr_decay ** (step // per_epoch // self.lr_decay_epochs)
        if self.schedule == "cosine":
            return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / (per_epoch * self.epochs)))
        return self.lr * warm

    def own_words_at(self, step: int, per_epoch: int) -> float:
        """The share of own words at a step."""
        return self.own_words * min(1.0, step / (per_epoch * self.own_words_epochs))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """``config.json``: settings, sizes, the network, and what the run was trained on.

    ``start`` says where the weights came from at the first step: the run and checkpoint, and the SHA-256 of its weights; None: drawn at random.
    """

    train: TrainConfig
    decoder: DecoderConfig
    network: Network
    vocabulary_digest: str
    source: Literal["features", "shards"]
    data: str
    data_digest: str
    versions: dict[str, str]
    start: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """An opened run, ready to caption; ``notes`` has a line for each damaged checkpoint that was passed over."""

    folder: Path
    config: RunConfig
    vocabulary: Vocabulary
    captioner: Captioner
    position: Position
    notes: tuple[str, ...] = ()


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
            start=None if content["start"] is None else {str(name): str(value) for name, value in content["start"].items()},
            **{name: content[name] for name in ("vocabulary_digest", "source", "data", "data_digest")},
        )
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
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
        checkpoint: ``latest``: the newest whole one; ``best``: the one whose captions scored best on the val split; ``average``: the mean of
            the weights of all that are kept.

    Raises:
        InputError, DamageError, MismatchError: As the parts say.
    """
    config, vocabulary = read_config(folder)
    path, position, notes = find_checkpoint(folder)
    captioner = Captioner(config.decoder)
    if checkpoint == "average":
        load_average(folder, captioner)
    else:
        if checkpoint == "best":
            path, position = best_checkpoint(folder, position)
        load_model(path, captioner)
    return Run(folder=folder, config=config, vocabulary=vocabulary, captioner=captioner.to(device).eval(), position=position, notes=tuple(notes))


def open_speaker(run: Run, others: Sequence[Path], *, checkpoint: Which = "latest") -> Captioner | Ensemble:
    """What captions are decoded from: the run's captioner, or with others the ensemble of all.

    Raises:
        MismatchError: They were not trained on features of one network, or have other vocabularies; names both sides.
        InputError, DamageError: As :func:`open_run`.
    """
    if not others:
        return run.captioner
    device = next(run.captioner.parameters()).device
    members = [run.captioner]
    for folder in others:
        other = open_run(folder, device=device, checkpoint=checkpoint)
        vocabularies = ("digest of the vocabulary", run.config.vocabulary_digest, other.config.vocabulary_digest)
        refuse_differences(
            [*run.config.network.sides(other.config.network), vocabularies],
            f"{run.folder} and {folder} cannot caption together: the second has another",
            "Train both on the same features, the second with --vocab of the first.",
        )
        members.append(other.captioner)
    return Ensemble(members).eval()


def refuse_differences(sides: Sequence[tuple[str, object, object]], what: str, advice: str) -> None:
    """Refuse two things that do not fit together.

    Args:
        sides: What is compared, and its value on either side.
        what: The message up to the name of what differs.

    Raises:
        MismatchError: Names both values of the first that differs.
    """
    for name, there, now in sides:
        if there != now:
            raise MismatchError(f"{what} {name}: {there} there, {now} now. {advice}")


def kept_weights(folder: Path) -> Path:
    """Where a run keeps weights that cannot be had again."""
    return folder / KEPT_FILE
