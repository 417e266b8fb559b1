"""Checkpoints of a run: committed folders, of which the newest few and the best are kept.

``RUN/checkpoints/step-00000048/{model.safetensors, training.pt, state.json}``. A folder under its final name is complete, and its
hashes say whether it still is. ``latest.json`` and ``best.json`` point to two of them, for people and other programs.

``model.safetensors`` is what captions are made with. Where that is a mean of weights (``--average-last``), those that the training goes
on with are in ``training.pt``, beside the optimizer's state.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from model.captioner import Captioner
from shards.atomic import committed_file, disk_errors, sync_folder
from shards.digests import file_sha256
from shards.errors import CapstreamError, DamageError, InputError, MismatchError
from shards.json_files import read_versioned_json, write_json

FORMAT_VERSION = 4
CheckpointChoice = Literal["latest", "best", "average"]
LATEST_FILE, BEST_FILE = "latest.json", "best.json"
MODEL_FILE, TRAINING_FILE = "model.safetensors", "training.pt"
FILES = (MODEL_FILE, TRAINING_FILE)


@dataclass(frozen=True, kw_only=True)
class BestValidation:
    """The best validation so far: CIDEr of generated captions, after so many steps."""

    step: int
    cider: float


@dataclass(frozen=True, kw_only=True)
class TrainingPosition:
    """Where a training stands: the next batch is ``step_in_epoch`` of ``epoch``; ``step`` batches are done.

    The weights that caption are the mean of those at the ends of ``averaged`` epochs; 0: they are the newest.
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
                raise ValueError(f"{name} is {value!r}, it must be a number of at least 0")


def checkpoint_folder(folder: Path, step: int) -> Path:
    """``RUN/checkpoints/step-00000048``."""
    return folder / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    folder: Path, captioner: Captioner, optimizer: torch.optim.Optimizer, position: TrainingPosition, *, mean: Captioner | None = None, keep: int = 3
) -> Path:
    """Commit a checkpoint and the pointers, and remove older ones but for the newest ``keep`` and the best.

    Args:
        captioner: What is trained.
        mean: What captions, where that is another.

    Raises:
        ResourceError: Disk full, not allowed.
    """
    target = checkpoint_folder(folder, position.step)
    staged = target.with_name(f".{target.name}.tmp")
    with disk_errors(target):
        for left in target.parent.glob(".step-*.tmp"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        staged.mkdir(parents=True)
        training: dict[str, Any] = {"optimizer": optimizer.state_dict()}
        if mean is not None:
            training["weights"] = captioner.state_dict()
        state = {key: value.detach().cpu().clone() for key, value in (mean or captioner).state_dict().items()}  # tied weights stand there twice
        with committed_file(staged / MODEL_FILE) as file:
            file.write(save(state))
        with committed_file(staged / TRAINING_FILE) as file:
            torch.save(training, file)
        hashes = {name: file_sha256(staged / name) for name in FILES}
        write_json(staged / "state.json", {"format_version": FORMAT_VERSION, "position": asdict(position), "sha256": hashes})
        if _holds(target, hashes):  # of the same step, saved before its validation: only the position is another, and the folder is never away
            (staged / "state.json").replace(target / "state.json")
            shutil.rmtree(staged, ignore_errors=True)
        else:
            shutil.rmtree(target, ignore_errors=True)
            staged.rename(target)
        sync_folder(target.parent)
    _point(folder, position)
    kept = {target, *sorted(target.parent.glob("step-*"))[-keep:]}
    # A damaged newest one leaves those before it, and what they call the best.
    bests = [best for path in kept if (best := _recorded_best(path)) is not None]
    kept |= {checkpoint_folder(folder, step) for step in bests}
    for old in sorted(target.parent.glob("step-*")):
        if old not in kept:
            shutil.rmtree(old, ignore_errors=True)
    return target


def _recorded_best(path: Path) -> int | None:
    """The step of the best checkpoint, as one of them has it; None too where it cannot be read."""
    try:
        best = read_versioned_json(path / "state.json", what="checkpoint", format_version=FORMAT_VERSION)["position"]["best"]
        return None if best is None else int(best["step"])
    except (CapstreamError, KeyError, TypeError, ValueError):
        return None


def _point(folder: Path, position: TrainingPosition) -> None:
    write_json(folder / LATEST_FILE, {"format_version": FORMAT_VERSION, "checkpoint": checkpoint_folder(folder, position.step).name})
    if position.best is not None:
        best = checkpoint_folder(folder, position.best.step).name
        write_json(folder / BEST_FILE, {"format_version": FORMAT_VERSION, "checkpoint": best, "cider": position.best.cider})


def holds_checkpoints(folder: Path) -> bool:
    """Whether a run has any checkpoint."""
    return any((folder / "checkpoints").glob("step-*"))


def find_checkpoint(folder: Path) -> tuple[Path, TrainingPosition, list[str]]:
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


def best_checkpoint(folder: Path, newest: TrainingPosition) -> tuple[Path, TrainingPosition]:
    """The checkpoint whose captions scored best, as the newest one knows it.

    Raises:
        InputError: The run has seen no val split yet.
        DamageError: It is damaged.
    """
    if newest.best is None:
        raise InputError(f"{folder}: holds no best checkpoint: no epoch has been scored on a val split. Take the latest one.")
    path = checkpoint_folder(folder, newest.best.step)
    if not path.is_dir():
        raise InputError(f"{path}: the best checkpoint is gone. Take the latest one.")
    return path, _check_checkpoint(path)


def load_average(folder: Path, captioner: Captioner) -> None:
    """Load the mean of the weights of all whole checkpoints that a run has kept (Vaswani et al., 2017, "Attention is all you need", section 6.1).

    Raises:
        InputError, DamageError: There is none, or none that is whole.
        MismatchError: Other names or shapes.
    """
    newest, _, _ = find_checkpoint(folder)
    whole = [*(path for path in sorted((folder / "checkpoints").glob("step-*")) if path != newest and _is_whole(path)), newest]
    sums: dict[str, Tensor] = {}
    for path in whole:  # what is counted, not measured, stays that of the newest
        load_model(path, captioner)
        for key, value in captioner.state_dict().items():
            if value.is_floating_point():
                sums[key] = sums.get(key, 0) + value.double()
    for key, total in sums.items():
        captioner.state_dict()[key].copy_(total / len(whole))


def _holds(path: Path, hashes: dict[str, str]) -> bool:
    """Whether these very files are there."""
    return all((path / name).is_file() and file_sha256(path / name) == sha256 for name, sha256 in hashes.items())


def _is_whole(path: Path) -> bool:
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
                raise DamageError(f"{path / name}: missing or not the bytes that were saved.")
        position = dict(content["position"])
        best = position.pop("best")
        return TrainingPosition(**position, best=None if best is None else BestValidation(step=int(best["step"]), cider=float(best["cider"])))
    except (KeyError, TypeError, ValueError) as error:
        raise DamageError(f"{path / 'state.json'}: damaged ({error!r}).") from None
    except OSError as error:
        raise DamageError(f"{path}: cannot be read ({error.strerror}).") from None


def load_model(path: Path, captioner: Captioner) -> None:
    """Load a checkpoint's weights into a captioner of the same sizes.

    Raises:
        DamageError: Unreadable.
        MismatchError: Other names or shapes.
    """
    try:
        state: dict[str, Tensor] = load_file(path / MODEL_FILE)
    except (SafetensorError, OSError) as error:
        raise DamageError(f"{path / MODEL_FILE}: cannot be read ({error}).") from None
    try:
        captioner.load_state_dict(state)
    except RuntimeError as error:
        raise MismatchError(f"{path}: the weights do not fit the run's config: {str(error)[:800]}") from None


def load_training(path: Path, captioner: Captioner, optimizer: torch.optim.Optimizer) -> None:
    """Load the optimizer's state; and into ``captioner``, which has the weights that caption, those that are trained where they are others.

    Raises:
        DamageError: Unreadable, or of another model.
    """
    place = path / TRAINING_FILE
    try:
        content: dict[str, Any] = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and its unpickler raise many kinds for strangers' bytes
        raise DamageError(f"{place}: cannot be read ({str(error)[:200]}).") from None
    try:
        if "weights" in content:
            captioner.load_state_dict(content["weights"])
        optimizer.load_state_dict(content["optimizer"])
        for parameter, state in optimizer.state.items():
            if any(isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape for value in state.values()):
                raise ValueError(f"a moment is not of its weights' shape {tuple(parameter.shape)}")
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DamageError(f"{place}: cannot be read ({str(error)[:200]}).") from None
