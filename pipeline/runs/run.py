"""The run directory: a training's config, vocabulary, log and checkpoints, and everything that captioning needs.

config.json  vocab.json  metrics.jsonl  events.out.tfevents.*  backbone.safetensors (random weights only)
checkpoints/step-00000048/{model.safetensors, training.pt, state.json}    latest.json  best.json
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from model.captioner import Captioner, Ensemble
from model.decoder_config import DecoderConfig
from model.feature_layout import POOLED
from model.limits import check_type
from model.vocabulary import Vocabulary
from pipeline.backbone.backbones import KEPT_FILE, Network
from pipeline.captions.vocabulary import read_vocabulary, vocabulary_digest, write_vocabulary
from pipeline.runs.checkpoints import CheckpointChoice, TrainingPosition, best_checkpoint, check_sizes, latest_checkpoint, load_average, load_model
from pipeline.runs.train_config import TrainConfig
from shards.errors import DamageError, InputError, MismatchError
from shards.found_instead import instead_of_run
from shards.json_files import read_versioned_json, write_json

FORMAT_VERSION = 7
CONFIG_FILE, VOCABULARY_FILE, METRICS_FILE = "config.json", "vocab.json", "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """``config.json``: the training's settings, the decoder's architecture, the backbone, and the training data.

    ``start`` records where the initial weights came from: the run, its checkpoint, and the SHA-256 of the weights; None: random initialization.

    Raises:
        TypeError, ValueError: A value is impossible.
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

    def __post_init__(self) -> None:
        for name in ("vocabulary_digest", "source", "data", "data_digest"):
            check_type(name, getattr(self, name), str)
        if self.source not in ("features", "shards"):
            raise ValueError(f"source is {self.source!r:.100}, it must be features or shards")
        for name, values in (("versions", self.versions), ("start", self.start or {})):
            for key, value in values.items():
                check_type(f"{name}.{key}", value, str)
        if self.start is not None and self.start.keys() != {"run", "checkpoint", "sha256"}:
            raise ValueError(f"start has {', '.join(self.start)[:100]}, it must have run, checkpoint and sha256")


@dataclass(frozen=True, kw_only=True)
class Run:
    """An opened run, ready to caption; ``notes`` has a message for each damaged checkpoint that was skipped."""

    folder: Path
    config: RunConfig
    vocabulary: Vocabulary
    captioner: Captioner
    position: TrainingPosition
    notes: tuple[str, ...] = ()


def is_run(folder: Path) -> bool:
    """Whether ``folder`` is a run directory."""
    return (folder / CONFIG_FILE).is_file()


def write_config(folder: Path, config: RunConfig, vocabulary: Vocabulary) -> None:
    """Commit the vocabulary, then the config, which makes the folder a run."""
    write_vocabulary(folder / VOCABULARY_FILE, vocabulary)
    write_json(folder / CONFIG_FILE, {"format_version": FORMAT_VERSION, **json.loads(json.dumps(asdict(config)))})


def read_config(folder: Path) -> tuple[RunConfig, Vocabulary]:
    """Read a run's config and vocabulary, and check that they belong together.

    Raises:
        InputError: The folder is not a run.
        DamageError: The config is damaged.
        MismatchError: Config and vocabulary do not belong together, or the run has another format version.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder}: {instead_of_run(folder)}")
    content = read_versioned_json(path, what="run config", format_version=FORMAT_VERSION)
    try:
        config = RunConfig(
            train=TrainConfig(**content["train"]),
            decoder=DecoderConfig(**content["decoder"]),
            network=Network.parse(content["network"]),
            versions=dict(content["versions"]),
            start=None if content["start"] is None else dict(content["start"]),
            **{name: content[name] for name in ("vocabulary_digest", "source", "data", "data_digest")},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, InputError) as error:
        raise DamageError(f"{path}: not a valid run config ({error!r}).") from None
    vocabulary = read_vocabulary(folder / VOCABULARY_FILE)
    found = vocabulary_digest(vocabulary)
    if found != config.vocabulary_digest or len(vocabulary) != config.decoder.vocabulary_size:
        raise MismatchError(
            f"{folder / VOCABULARY_FILE}: this vocabulary ({len(vocabulary)} words, digest {found}) is not the one that the run was trained "
            f"with ({config.decoder.vocabulary_size} words, digest {config.vocabulary_digest}). Restore the original file."
        )
    return config, vocabulary


def open_run(folder: Path, *, device: torch.device, checkpoint: CheckpointChoice = "latest") -> Run:
    """Open a run in eval mode on ``device``.

    Args:
        checkpoint: ``latest``: the newest intact one; ``best``: the one with the best validation CIDEr; ``average``: the average of the
            weights of all intact ones.

    Raises:
        InputError, DamageError, MismatchError: The run, or its checkpoint, is missing, damaged or inconsistent.
    """
    config, vocabulary = read_config(folder)
    path, position, notes = latest_checkpoint(folder)
    check_sizes(path, config.decoder)
    captioner = Captioner(config.decoder)
    if checkpoint == "average":
        load_average(folder, captioner)
    else:
        if checkpoint == "best":
            path, position = best_checkpoint(folder, position)
        load_model(path, captioner)
    return Run(folder=folder, config=config, vocabulary=vocabulary, captioner=captioner.to(device).eval(), position=position, notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class CaptionModelInput:
    """What captions are decoded from, and the features that it needs.

    Attributes:
        model: A run's captioner, or an ensemble.
        network: The network whose features it takes, with their layout.
        pools: Whether a member was trained on pooled features, for which the mean over the positions of a grid stands.
    """

    model: Captioner | Ensemble
    network: Network
    pools: bool


def open_caption_model(run: Run, others: Sequence[Path], *, checkpoint: CheckpointChoice = "latest") -> CaptionModelInput:
    """What captions are decoded from: the run's captioner, or with others the ensemble of all.

    An ensemble of runs on pooled and on grid features takes the grid's; the first ones see the mean over its positions.

    Raises:
        MismatchError: They were not trained on features of one network, or have other vocabularies; names both sides.
        InputError, DamageError: As :func:`open_run`.
    """
    network = run.config.network
    if not others:
        return CaptionModelInput(model=run.captioner, network=network, pools=network.layout == POOLED)
    device = next(run.captioner.parameters()).device
    members, layouts = [run], {network.layout}
    for folder in others:
        other = open_run(folder, device=device, checkpoint=checkpoint)
        vocabularies = ("digest of the vocabulary", run.config.vocabulary_digest, other.config.vocabulary_digest)
        refuse_differences(
            [*network.sides(replace(other.config.network, layout=network.layout)), vocabularies],
            f"{run.folder} and {folder} cannot caption together: the second has another",
            "Train both on the same features, the second with the vocabulary of the first (train --vocab).",
        )
        members.append(other)
        layouts.add(other.config.network.layout)
    for member in members:
        own = member.config.network.layout
        if (layouts != {own} and (own == POOLED) != member.captioner.decoder.pooled) or len(layouts - {POOLED}) > 1:
            raise MismatchError(
                f"{member.folder} was trained on {own} features, the others on {', '.join(sorted(layouts - {own}))} features: they cannot caption "
                "together. Choose runs on features of one layout; a decoder of one vector may also join others."
            )
    return CaptionModelInput(
        model=Ensemble(member.captioner for member in members).eval(),
        network=replace(network, layout=max(layouts - {POOLED}, default=POOLED)),
        pools=POOLED in layouts,
    )


def refuse_differences(sides: Sequence[tuple[str, object, object]], what: str, advice: str) -> None:
    """Raise if two artefacts do not belong together.

    Args:
        sides: Tuples (name, expected value, value found) to compare.
        what: The beginning of the message, up to the name of what differs.
        advice: The end of the message: what to do.

    Raises:
        MismatchError: Names both values of the first difference.
    """
    for name, expected, found in sides:
        if expected != found:
            raise MismatchError(f"{what} {name}: expected {expected}, found {found}. {advice}")


def kept_weights(folder: Path) -> Path:
    """The backbone's weights in a run's folder, which has them if they were random."""
    return folder / KEPT_FILE
