"""The run directory: what a training was, where it stands, and all that captioning needs of it.

config.json  vocab.json  metrics.jsonl  events.out.tfevents.*  backbone.safetensors (random weights only)
checkpoints/step-00000048/{model.safetensors, training.pt, state.json}    latest.json
"""

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from model.decoder import Captioner, DecoderConfig
from model.vocabulary import Vocabulary
from pipeline.backbones import KEPT_FILE, Network
from pipeline.vocab import read_vocabulary, vocabulary_digest, write_vocabulary
from shards.atomic import committed_file, disk_errors, file_sha256, read_own_json, sync_folder, write_json
from shards.errors import CapstreamError, DamageError, InputError, MismatchError
from shards.tar import OnError

FORMAT_VERSION = 2
CONFIG_FILE, VOCABULARY_FILE, METRICS_FILE, LATEST_FILE = "config.json", "vocab.json", "metrics.jsonl", "latest.json"
KEPT_CHECKPOINTS = 3
MAX_LR = 1e6


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training's settings; the defaults are the tutorial's recipe."""

    epochs: int = 5
    batch_size: int = 128
    lr: float = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    seed: int = 0
    min_count: int = 4
    captions_per_image: int = 1
    checkpoint_every: int = 1000
    augment: Literal["tutorial", "none"] = "tutorial"
    on_error: OnError = "fail"
    embedding_dim: int = 256
    hidden_dim: int = 512
    layers: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "min_count", "captions_per_image", "checkpoint_every", "embedding_dim", "hidden_dim", "layers"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1.")
        if self.batch_size < 2:
            raise InputError(f"--batch-size {self.batch_size}: must be at least 2; BatchNorm cannot normalise a single image.")
        if not 0 < self.lr <= MAX_LR:
            raise InputError(f"--lr {self.lr}: must be greater than 0, and at most {MAX_LR:g}.")
        if self.seed < 0:
            raise InputError(f"--seed {self.seed}: must not be negative.")
        if self.schedule not in ("constant", "cosine"):
            raise InputError(f"--schedule {self.schedule}: must be constant or cosine.")
        if self.on_error not in ("fail", "skip"):
            raise InputError(f"--on-error {self.on_error}: must be fail or skip.")
        if self.augment not in ("tutorial", "none"):
            raise InputError(f"--augment {self.augment}: must be tutorial or none.")

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
class Position:
    """Where a training stands: the next batch is ``step_in_epoch`` of ``epoch``; ``step`` batches are done."""

    epoch: int
    step_in_epoch: int
    step: int


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


def checkpoint_folder(folder: Path, step: int) -> Path:
    """``RUN/checkpoints/step-00000048``."""
    return folder / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(folder: Path, captioner: Captioner, optimizer: torch.optim.Optimizer, position: Position) -> Path:
    """Commit a checkpoint and point ``latest.json`` to it; older ones beyond ``KEPT_CHECKPOINTS`` are removed.

    Raises:
        ResourceError: Disk full, not allowed.
    """
    target = checkpoint_folder(folder, position.step)
    staged = target.with_name(f".{target.name}.tmp")
    with disk_errors(target):
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        state = {key: value.detach().cpu().contiguous() for key, value in captioner.state_dict().items()}
        with committed_file(staged / "model.safetensors") as file:
            file.write(save(state))
        with committed_file(staged / "training.pt") as file:
            torch.save({"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, file)
        hashes = {name: file_sha256(staged / name) for name in ("model.safetensors", "training.pt")}
        write_json(staged / "state.json", {"format_version": FORMAT_VERSION, "position": asdict(position), "sha256": hashes})
        shutil.rmtree(target, ignore_errors=True)
        staged.rename(target)
        sync_folder(target.parent)
    write_json(folder / LATEST_FILE, {"format_version": FORMAT_VERSION, "checkpoint": target.name})
    for old in sorted(target.parent.glob("step-*"))[:-KEPT_CHECKPOINTS]:
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    return target


def find_checkpoint(folder: Path) -> tuple[Path, Position, list[str]]:
    """The newest whole checkpoint, and a line for each damaged one that was passed over.

    Raises:
        InputError: There is none at all.
        DamageError: All are damaged.
    """
    notes: list[str] = []
    for candidate in sorted((folder / "checkpoints").glob("step-*"), reverse=True):
        try:
            return candidate, _check_checkpoint(candidate), notes
        except CapstreamError as error:
            notes.append(f"{error} The one before it is used.")
    if notes:
        raise DamageError(f"{folder}: every checkpoint is damaged. {notes[0]} Train again into a new folder.")
    raise InputError(f"{folder}: holds no checkpoint yet. Go on with: python cli.py train --out {folder} --resume")


def _check_checkpoint(path: Path) -> Position:
    content = read_own_json(path / "state.json", what="checkpoint", format_version=FORMAT_VERSION)
    try:
        for name in ("model.safetensors", "training.pt"):
            if not (path / name).is_file() or file_sha256(path / name) != content["sha256"][name]:
                raise DamageError(f"{path / name}: missing or not the bytes that were saved.")
        return Position(**content["position"])
    except (KeyError, TypeError) as error:
        raise DamageError(f"{path / 'state.json'}: damaged ({error!r}).") from None


def load_model(path: Path, captioner: Captioner) -> None:
    """Load a checkpoint's weights into a captioner of the same sizes.

    Raises:
        DamageError: Unreadable.
        MismatchError: Other names or shapes.
    """
    try:
        state: dict[str, Tensor] = load_file(path / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise DamageError(f"{path / 'model.safetensors'}: cannot be read ({error}).") from None
    try:
        captioner.load_state_dict(state)
    except RuntimeError as error:
        raise MismatchError(f"{path}: the weights do not fit the run's config: {str(error)[:800]}") from None


def load_training(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer's state and torch's random state."""
    try:
        content: dict[str, Any] = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["rng"])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise DamageError(f"{path / 'training.pt'}: cannot be read ({str(error)[:200]}).") from None


def open_run(folder: Path, *, device: torch.device) -> Run:
    """Open a run at its newest whole checkpoint, in eval mode on ``device``.

    Raises:
        InputError, DamageError, MismatchError: As the parts say.
    """
    config, vocabulary = read_config(folder)
    path, position, _ = find_checkpoint(folder)
    captioner = Captioner(config.decoder)
    load_model(path, captioner)
    return Run(folder=folder, config=config, vocabulary=vocabulary, captioner=captioner.to(device).eval(), position=position)


def kept_weights(folder: Path) -> Path:
    """Where a run keeps weights that cannot be had again."""
    return folder / KEPT_FILE
