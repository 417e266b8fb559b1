"""Checkpoints of a run: committed folders, of which the newest few and the best are kept.

``RUN/checkpoints/step-00000048/{model.safetensors, training.pt, state.json}``. A folder under its final name is complete; the recorded
SHA-256 hashes show whether its files are intact. ``latest.json`` and ``best.json`` name two of the checkpoints, for people and other programs.

``model.safetensors`` has the weights used for captioning. With weight averaging (``average_last``) these are an average; the weights that
are being trained are then in ``training.pt``, next to the optimizer's state.
"""

import contextlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from model.captioner import Captioner
from model.decoder_config import DecoderConfig
from pipeline.backbone.weights_files import load_tensors
from shards.atomic import committed_file, disk_errors, sync_folder
from shards.digests import file_sha256
from shards.errors import CapstreamError, DamageError, InputError, MismatchError
from shards.json_files import read_versioned_json, write_json
from shards.paths import shell_quoted

FORMAT_VERSION = 4
CheckpointChoice = Literal["latest", "best", "average"]
LATEST_FILE, BEST_FILE = "latest.json", "best.json"
MODEL_FILE, TRAINING_FILE = "model.safetensors", "training.pt"
FILES = (MODEL_FILE, TRAINING_FILE)


@dataclass(frozen=True, kw_only=True)
class BestValidation:
    """The best validation so far: its global step, and the CIDEr of the generated captions."""

    step: int
    cider: float


@dataclass(frozen=True, kw_only=True)
class TrainingPosition:
    """The progress of a training: where the next step is, and what has been reached.

    Attributes:
        epoch, step_in_epoch: The next batch, both counted from 0.
        step: The global step: the number of batches trained on so far.
        averaged: How many epochs' final weights the weights used for captioning are an average of; 0: they are the newest weights.
        best: The best validation so far.
    """

    epoch: int
    step_in_epoch: int
    step: int
    averaged: int = 0
    best: BestValidation | None = None

    def __post_init__(self) -> None:
        for name in ("epoch", "step_in_epoch", "step", "averaged"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} is {value!r}, but must be an integer of at least 0")


def checkpoint_folder(folder: Path, step: int) -> Path:
    """``RUN/checkpoints/step-00000048``."""
    return folder / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    folder: Path,
    captioner: Captioner,
    optimizer: torch.optim.Optimizer,
    position: TrainingPosition,
    *,
    average: Captioner | None = None,
    keep: int = 3,
) -> Path:
    """Commit a checkpoint and its pointer files, and remove older ones except the newest ``keep`` and the best.

    Args:
        captioner: The weights that are being trained.
        average: The weights used for captioning, if they differ from those.

    Returns:
        The checkpoint's folder.

    Raises:
        ResourceError: Disk full, permission denied.
    """
    target = checkpoint_folder(folder, position.step)
    staged = target.with_name(f".{target.name}.tmp")
    with disk_errors(target), _staged_folder(staged):
        training: dict[str, Any] = {"optimizer": optimizer.state_dict()}
        if average is not None:
            training["weights"] = captioner.state_dict()
        state = {
            key: value.detach().cpu().clone() for key, value in (average or captioner).state_dict().items()
        }  # clone(): safetensors refuses tied weights
        with committed_file(staged / MODEL_FILE) as file:
            file.write(save(state))
        with committed_file(staged / TRAINING_FILE) as file:
            file.write(_torch_bytes(training))
        hashes = {name: file_sha256(staged / name) for name in FILES}
        write_json(staged / "state.json", {"format_version": FORMAT_VERSION, "position": asdict(position), "sha256": hashes})
        if _has_files(target, hashes):  # this step was saved before its validation: replace its position alone, so that the folder always exists
            (staged / "state.json").replace(target / "state.json")
        else:
            shutil.rmtree(target, ignore_errors=True)
            staged.rename(target)
        sync_folder(target.parent)
    _write_pointers(folder, position)
    kept = {target, *sorted(target.parent.glob("step-*"))[-keep:]}
    # If the newest one turns out damaged, the one before it is used: keep what that one records as the best too.
    bests = [best for path in kept if (best := _recorded_best(path)) is not None]
    kept |= {checkpoint_folder(folder, step) for step in bests}
    for old in sorted(target.parent.glob("step-*")):
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return target


@contextlib.contextmanager
def _staged_folder(path: Path) -> Iterator[None]:
    """A new folder for the files of a checkpoint, which is renamed when it is complete, or else removed at the end."""
    try:
        for leftover in path.parent.glob(".step-*.tmp"):  # from a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        path.mkdir(parents=True)
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _torch_bytes(content: Any) -> bytes | memoryview:
    """What :func:`torch.save` writes. Its writer replaces the error of a full disk by one of its own, so it does not see the file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def _recorded_best(path: Path) -> int | None:
    """The step that a checkpoint records as the best; None if it records none or cannot be read."""
    try:
        best = read_versioned_json(path / "state.json", what="checkpoint", format_version=FORMAT_VERSION)["position"]["best"]
        return None if best is None else int(best["step"])
    except (CapstreamError, KeyError, TypeError, ValueError):
        return None


def _write_pointers(folder: Path, position: TrainingPosition) -> None:
    write_json(folder / LATEST_FILE, {"format_version": FORMAT_VERSION, "checkpoint": checkpoint_folder(folder, position.step).name})
    if position.best is not None:
        best = checkpoint_folder(folder, position.best.step).name
        write_json(folder / BEST_FILE, {"format_version": FORMAT_VERSION, "checkpoint": best, "cider": position.best.cider})


def has_checkpoints(folder: Path) -> bool:
    """Whether a run has any checkpoint."""
    return any((folder / "checkpoints").glob("step-*"))


def latest_checkpoint(folder: Path) -> tuple[Path, TrainingPosition, list[str]]:
    """The newest intact checkpoint, and a message for each newer one that is damaged.

    Raises:
        InputError: The run has no checkpoint.
        DamageError: All checkpoints are damaged.
    """
    notes: list[str] = []
    for candidate in sorted((folder / "checkpoints").glob("step-*"), reverse=True):
        try:
            return candidate, _check_checkpoint(candidate), notes
        except CapstreamError as error:
            notes.append(f"{error} Using the checkpoint before it.")
    if notes:
        raise DamageError(f"{folder}: all checkpoints are damaged. {notes[0]} Train again into a new folder.")
    raise InputError(f"{folder}: has no checkpoint yet. Resume the training with: python cli.py train --out {shell_quoted(folder)} --resume")


def best_checkpoint(folder: Path, newest: TrainingPosition) -> tuple[Path, TrainingPosition]:
    """The checkpoint with the best validation CIDEr, as the newest checkpoint records it.

    Raises:
        InputError: The run has not been validated yet, or the checkpoint is missing.
        DamageError: It is damaged.
    """
    if newest.best is None:
        raise InputError(f"{folder}: has no best checkpoint, because no epoch has been validated on a val split. Use the latest one.")
    path = checkpoint_folder(folder, newest.best.step)
    if not path.is_dir():
        raise InputError(f"{path}: the best checkpoint is missing. Use the latest one.")
    return path, _check_checkpoint(path)


def load_average(folder: Path, captioner: Captioner) -> None:
    """Load the average of the weights of all intact checkpoints of a run (Vaswani et al., 2017, "Attention is all you need", section 6.1).

    Raises:
        InputError, DamageError: There is no checkpoint, or no intact one.
        MismatchError: The weights have other names or shapes.
    """
    newest, _, _ = latest_checkpoint(folder)
    intact = [*(path for path in sorted((folder / "checkpoints").glob("step-*")) if path != newest and _is_intact(path)), newest]
    sums: dict[str, Tensor] = {}
    for path in intact:  # integer buffers (counters) keep the values of the newest, which is loaded last
        load_model(path, captioner)
        for key, value in captioner.state_dict().items():
            if value.is_floating_point():
                sums[key] = sums.get(key, 0) + value.double()
    for key, total in sums.items():
        captioner.state_dict()[key].copy_(total / len(intact))


def _has_files(path: Path, hashes: dict[str, str]) -> bool:
    """Whether a folder has all these files, with these SHA-256 hashes."""
    return all((path / name).is_file() and file_sha256(path / name) == sha256 for name, sha256 in hashes.items())


def _is_intact(path: Path) -> bool:
    try:
        _check_checkpoint(path)
    except CapstreamError:
        return False
    return True


def _check_checkpoint(path: Path) -> TrainingPosition:
    content = read_versioned_json(path / "state.json", what="checkpoint", format_version=FORMAT_VERSION)
    try:
        for name in FILES:
            if not (path / name).is_file() or file_sha256(path / name) != content["sha256"][name]:
                raise DamageError(f"{path / name}: missing, or its SHA-256 is not the recorded one.")
        position = dict(content["position"])
        best = position.pop("best")
        return TrainingPosition(**position, best=None if best is None else BestValidation(step=int(best["step"]), cider=float(best["cider"])))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DamageError(f"{path / 'state.json'}: damaged ({error!r}).") from None
    except OSError as error:
        raise DamageError(f"{path}: cannot be read ({error.strerror}).") from None


def check_sizes(path: Path, config: DecoderConfig) -> None:
    """Check that a checkpoint's weights have the sizes of a config, before a captioner of these sizes takes any memory.

    Raises:
        DamageError: The file cannot be read.
        MismatchError: The weights have other names or shapes; names the first.
    """
    with torch.device("meta"):
        expected = {name: list(value.shape) for name, value in Captioner(config).state_dict().items()}
    try:
        with safe_open(path / MODEL_FILE, "pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise DamageError(f"{path / MODEL_FILE}: cannot be read ({error}).") from None
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise MismatchError(
                f"{path}: the weights do not fit the run's config: {name} has shape {found.get(name)}, but by the config {expected.get(name)}. "
                "Restore the original config.json."
            )


def load_model(path: Path, captioner: Captioner) -> None:
    """Load a checkpoint's weights, those used for captioning, into a captioner of the same architecture.

    Raises:
        DamageError: The file cannot be read.
        MismatchError: The weights have other names or shapes.
    """
    try:
        state: dict[str, Tensor] = load_file(path / MODEL_FILE)
    except (SafetensorError, OSError) as error:
        raise DamageError(f"{path / MODEL_FILE}: cannot be read ({error}).") from None
    try:
        captioner.load_state_dict(state)
    except RuntimeError as error:
        raise MismatchError(f"{path}: the weights do not fit the run's config: {str(error)[:800]}") from None


def load_training_state(path: Path, captioner: Captioner, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer's state, and with weight averaging the weights that are being trained.

    Args:
        captioner: Has the weights of :func:`load_model`.

    Raises:
        DamageError: The file cannot be read, or belongs to another model.
    """
    training_file = path / TRAINING_FILE
    try:
        content: dict[str, Any] = load_tensors(training_file)
    except ValueError as error:
        raise DamageError(f"{training_file}: cannot be read: it {error}.") from None
    try:
        if "weights" in content:
            captioner.load_state_dict(content["weights"])
        optimizer.load_state_dict(content["optimizer"])
        for parameter, state in optimizer.state.items():
            if any(isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape for value in state.values()):
                raise ValueError(f"an optimizer state does not have the shape of its weights, {tuple(parameter.shape)}")
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DamageError(f"{training_file}: cannot be read ({str(error)[:200]}).") from None
