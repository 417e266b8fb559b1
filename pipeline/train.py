"""Batches -> run directory: one loop for raw shards and for cached features.

The stream's state is (epoch, step), the model's is in the checkpoint: a resumed training goes on with the very batch that comes next.
"""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from model.decoder import Captioner, DecoderConfig
from model.vocabulary import Vocabulary
from pipeline.arithmetic import prepare_device
from pipeline.backbones import KEPT_FILE, RANDOM, pick_device
from pipeline.batches import CaptionBatch, Encoded, steps_per_epoch, to_device, training_batches
from pipeline.metrics_log import LOG_EVERY, Meter, MetricsLog, perplexity
from pipeline.progress import Progress
from pipeline.run import (
    CONFIG_FILE,
    Position,
    RunConfig,
    TrainConfig,
    find_checkpoint,
    holds_run,
    load_model,
    load_training,
    read_config,
    save_checkpoint,
    write_config,
)
from pipeline.training_data import Data, features_function, open_cached, open_raw, val_batches
from pipeline.vocab import read_vocabulary, vocabulary_digest, vocabulary_of
from shards.atomic import committed_file, disk_errors, exclusive
from shards.errors import InputError, MismatchError, OccupiedError
from shards.manifest import library_versions
from shards.mirror import DEFAULT_CACHE_BYTES
from shards.remote import localize, origin

MAY_CHANGE = ("epochs", "checkpoint_every")


class Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C was pressed; everything up to now is saved."""


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How a training ended: ``seconds_per_epoch`` of the epochs that this process did whole, ``captions_per_second`` of its last steps."""

    steps: int
    loss: float
    val_loss: float | None
    seconds_per_epoch: float | None
    captions_per_second: float | None
    notes: tuple[str, ...]


def train(
    *,
    out: Path,
    features: Path | None = None,
    shards: Path | None = None,
    vocab: Path | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    settings: dict[str, Any] | None = None,
    resume: bool = False,
    device: str = "auto",
    quiet: bool = True,
    max_steps: int | None = None,
    shard_cache: Path | None = None,
    shard_cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> TrainSummary:
    """Train a captioner into ``out``.

    Args:
        out: The run directory.
        features, shards: One of the two; with ``resume`` neither is needed.
        vocab: A vocabulary file; without one the vocabulary is built from the training captions.
        backbone, weights: For shards.
        settings: Fields of :class:`TrainConfig` that were said; the others have its defaults, or on resuming the run's values.
        resume: Go on where ``out`` stopped, or start it.
        max_steps: Stop early after so many steps in all (for measurements and tests).
        shard_cache, shard_cache_bytes: Where a run that is resumed keeps remote shards, and how many bytes of them; as for
            :func:`shards.remote.localize`.

    Raises:
        OccupiedError: ``out`` holds a run and ``resume`` is not given, or holds something else.
        MismatchError: The run was made from other data or settings than are given now.
        Interrupted: Ctrl-C, after a checkpoint.
        InputError, DamageError, ResourceError: As the parts say.
    """
    settings = {name: value for name, value in (settings or {}).items() if value is not None}
    going_on = holds_run(out)
    _check_out(out, resume=resume)
    stored: RunConfig | None = None
    if going_on:
        stored, stored_vocabulary = read_config(out)
        if features is None and shards is None:
            place = localize(stored.data, cache=shard_cache, cache_bytes=shard_cache_bytes)
            features, shards = (place, None) if stored.source == "features" else (None, place)
        config = _resumed_config(out, stored, settings)
    else:
        config = TrainConfig(**settings)
    if (features is None) == (shards is None):
        raise InputError("Give one of --features DIR (cached) and --shards DIR (raw).")
    if features is not None and (backbone or weights):
        raise InputError("--backbone and --weights are for --shards; features were made by the network that their file names.")
    torch_device = pick_device(device)
    prepare_device(torch_device)
    with exclusive(out, "train", "training"):
        if features is not None:
            data = open_cached(features)
        else:
            assert shards is not None
            chosen = (
                backbone or (stored.network.backbone if stored else "resnet152"),
                weights or (stored.network.weights if stored else None),
            )
            data = open_raw(shards, out, backbone=chosen[0], weights=chosen[1], augment=config.augment, device=torch_device, on_error=config.on_error)
        if stored is not None:
            vocabulary = stored_vocabulary
            given = read_vocabulary(vocab) if vocab is not None else vocabulary
            _check_resumable(out, stored, data, given)
        else:
            vocabulary = read_vocabulary(vocab) if vocab else vocabulary_of(data.source.table, min_count=config.min_count).vocabulary
            if data.kind == "features" and data.network.weights == RANDOM:
                _keep_weights(data.path, out)
        decoder = DecoderConfig(
            feature_dim=data.feature_dim,
            vocabulary_size=len(vocabulary),
            embedding_dim=config.embedding_dim,
            hidden_dim=config.hidden_dim,
            layers=config.layers,
        )
        run_config = RunConfig(
            train=config,
            decoder=decoder,
            network=data.network,
            vocabulary_digest=vocabulary_digest(vocabulary),
            source=data.kind,
            data=origin(data.path),
            data_digest=data.data_digest,
            versions=library_versions("torch", "torchvision", "numpy", "safetensors"),
        )
        write_config(out, run_config, vocabulary)
        return _train(out, run_config, data, vocabulary, torch_device, quiet=quiet, max_steps=max_steps)


def _check_out(out: Path, *, resume: bool) -> None:
    with disk_errors(out):
        if out.exists() and not out.is_dir():
            raise OccupiedError(f"{out}: is a file. Choose a new or empty folder for --out.")
        inside = sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) if out.is_dir() else []
    if holds_run(out):
        if not resume:
            raise OccupiedError(f"{out}: holds a run already. Go on with it by --resume, or choose another --out.")
    elif inside and set(inside) - {KEPT_FILE, "vocab.json"}:
        raise OccupiedError(f"{out}: holds something else than a run ({inside[0]}; no {CONFIG_FILE}). Choose a new or empty folder for --out.")


def _resumed_config(out: Path, stored: RunConfig, settings: dict[str, Any]) -> TrainConfig:
    there = asdict(stored.train)
    for name, value in settings.items():
        if name not in MAY_CHANGE and there[name] != value:
            raise MismatchError(
                f"{out}: this run was started with --{name.replace('_', '-')} {there[name]}, now {value} is asked for. Leave the option "
                "away, or choose another --out."
            )
    return TrainConfig(**{**there, **settings})


def _check_resumable(out: Path, stored: RunConfig, data: Data, vocabulary: Vocabulary) -> None:
    sides = [
        ("source", stored.source, data.kind),
        ("digest of the training data", stored.data_digest, data.data_digest),
        ("backbone", stored.network.backbone, data.network.backbone),
        ("digest of the backbone's weights", stored.network.weights_sha256, data.network.weights_sha256),
        ("preprocessing", stored.network.preprocessing, data.network.preprocessing),
        ("digest of the vocabulary", stored.vocabulary_digest, vocabulary_digest(vocabulary)),
    ]
    for name, there, now in sides:
        if there != now:
            raise MismatchError(
                f"{out}: this run was started with another {name}: {there} there, {now} now. Resume it with what it was started with, or "
                "train into another --out."
            )


def _keep_weights(features: Path, out: Path) -> None:
    source = features / KEPT_FILE
    if not source.is_file():
        raise InputError(f"{source}: the random backbone's weights are missing; a run could caption nothing without them. Cache the features again.")
    with committed_file(out / KEPT_FILE) as target, source.open("rb") as file:
        shutil.copyfileobj(file, target)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed: a step is finished first. A second Ctrl-C ends at once."""
    pressed = False

    def remember(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    try:
        before = signal.signal(signal.SIGINT, remember)
    except ValueError:  # not in the main thread: whoever runs us there answers Ctrl-C
        yield lambda: False
        return
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _train(
    out: Path, config: RunConfig, data: Data, vocabulary: Vocabulary, device: torch.device, *, quiet: bool, max_steps: int | None
) -> TrainSummary:
    settings = config.train
    torch.manual_seed(settings.seed)
    captioner = Captioner(config.decoder).to(device)
    optimizer = torch.optim.Adam(captioner.parameters(), lr=settings.lr)
    notes: list[str] = list(data.notes)
    position = Position(epoch=0, step_in_epoch=0, step=0)
    if (out / "checkpoints").is_dir() and any((out / "checkpoints").glob("step-*")):
        path, position, passed_over = find_checkpoint(out)
        notes += passed_over
        load_model(path, captioner)
        load_training(path, optimizer)
    features_of = features_function(data)
    encoded = Encoded(data.source.table, vocabulary)
    val = val_batches(data, vocabulary, features_of, device) if data.val is not None else None
    per_epoch = steps_per_epoch(data.source.table, batch_size=settings.batch_size, captions_per_image=settings.captions_per_image)
    log = MetricsLog(out, position.step)
    total = per_epoch * settings.epochs if max_steps is None else min(per_epoch * settings.epochs, max_steps)
    loss = val_loss = None
    epoch_seconds: list[float] = []
    saved, meter = position, Meter()
    with (
        _interruptible() as interrupted,
        Progress("Training", total=max(total - position.step, 0), unit="steps", quiet=quiet) as progress,
    ):
        while position.epoch < settings.epochs and position.step < total:
            captioner.train()
            began, whole = time.perf_counter(), position.step_in_epoch == 0
            batches = iter(
                training_batches(
                    data.source,
                    encoded,
                    seed=settings.seed,
                    epoch=position.epoch,
                    batch_size=settings.batch_size,
                    captions_per_image=settings.captions_per_image,
                    first_step=position.step_in_epoch,
                )
            )
            while position.step_in_epoch < per_epoch and position.step < total:
                asked = time.perf_counter()
                batch = to_device(next(batches), device)
                came = time.perf_counter()
                lr = settings.lr_at(position.step, per_epoch * settings.epochs)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.zero_grad()
                step_loss, _ = captioner(features_of(batch), batch.unit_rows, batch.tokens, batch.caption_lengths)
                step_loss.backward()
                optimizer.step()
                position = Position(epoch=position.epoch, step_in_epoch=position.step_in_epoch + 1, step=position.step + 1)
                meter.add(step_loss.detach(), len(batch.captions), waited=came - asked, seconds=time.perf_counter() - asked)
                progress.advance(1, note=meter.note)
                if position.step % LOG_EVERY == 0 or position.step == total:
                    loss = meter.write(log, position, lr)
                if interrupted() or position.step % settings.checkpoint_every == 0:
                    save_checkpoint(out, captioner, optimizer, position)
                    saved = position
                if interrupted():
                    log.close()
                    raise Interrupted(f"Stopped after step {position.step} of {total}; all of it is saved.")
            close = getattr(batches, "close", None)
            if close is not None:
                close()
            if position.step_in_epoch < per_epoch:
                break
            if whole:
                epoch_seconds.append(time.perf_counter() - began)
            if val is not None:
                val_loss = _val_loss(captioner, val)
                log.write({"step": position.step, "epoch": position.epoch, "val_loss": val_loss, "val_perplexity": perplexity(val_loss)})
            position = Position(epoch=position.epoch + 1, step_in_epoch=0, step=position.step)
    if position.step > saved.step or not (out / "checkpoints").is_dir():
        save_checkpoint(out, captioner, optimizer, position)
    log.close()
    return TrainSummary(
        steps=position.step,
        loss=loss if loss is not None else float("nan"),
        val_loss=val_loss,
        seconds_per_epoch=sorted(epoch_seconds)[len(epoch_seconds) // 2] if epoch_seconds else None,
        captions_per_second=meter.captions_per_second,
        notes=tuple(notes),
    )


@torch.no_grad()
def _val_loss(captioner: Captioner, batches: list[CaptionBatch]) -> float:
    """Mean cross-entropy per token over the val split, in nats."""
    captioner.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        loss, count = captioner(batch.images, batch.unit_rows, batch.tokens, batch.caption_lengths)
        total, tokens = total + float(loss) * count, tokens + count
    return total / max(tokens, 1)
