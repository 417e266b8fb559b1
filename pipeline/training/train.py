"""Shards or feature files -> run directory: opens, checks and records what a training is, then trains.

Run under torchrun, the processes it started train together; only the first writes.
"""

import shutil
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from model.decoder_config import DecoderConfig
from model.vocabulary import Vocabulary
from pipeline.backbone.backbones import KEPT_FILE, RANDOM
from pipeline.backbone.precision import decoder_precision
from pipeline.captions.vocabulary import read_vocabulary, vocabulary_digest, vocabulary_of
from pipeline.execution.devices import pick_device, prepare_device
from pipeline.loading.batches import check_units
from pipeline.loading.order import units_of
from pipeline.loading.training_data import RawConfig, TrainingData, open_cached, open_raw
from pipeline.runs.checkpoints import MODEL_FILE, best_checkpoint, find_checkpoint, holds_checkpoints
from pipeline.runs.recipes import ARCHITECTURE, chosen_settings, read_settings
from pipeline.runs.run import CONFIG_FILE, RunConfig, holds_run, read_config, refuse_differences, write_config
from pipeline.runs.train_config import KINDS, TrainConfig, option
from pipeline.training.distributed import ProcessGroup, own_device, process_group
from pipeline.training.loop import TrainSummary, run_training
from shards.atomic import committed_file, disk_errors, hold_lock
from shards.digests import file_sha256
from shards.errors import InputError, MismatchError, OccupiedError
from shards.mirror import DEFAULT_CACHE_BYTES
from shards.remote import localize, origin
from shards.versions import library_versions

MAY_CHANGE = ("epochs", "patience", "accumulate", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "log_every")


def train(
    *,
    out: Path,
    features: Path | None = None,
    shards: Path | None = None,
    vocab: Path | None = None,
    backbone: str | None = None,
    weights: str | None = None,
    settings: dict[str, Any] | None = None,
    config_file: Path | None = None,
    start: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int | None = None,
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
        settings: Fields of :class:`TrainConfig` that were said; the others have the recipe's values, or on resuming the run's.
        config_file: A TOML file of such fields; what stands in ``settings`` goes over it.
        start: A run whose best weights, or latest where there are no best, are those of the first step; its vocabulary and sizes hold here.
        resume: Go on where ``out`` stopped, or start it.
        workers: Threads that decode images; by default one for each core. The batches do not depend on it.
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
    torch_device = pick_device(own_device(device))
    prepare_device(torch_device)
    with process_group(torch_device) as processes:

        def read() -> _Request:
            _check_out(out, resume=resume)
            stored = read_config(out) if holds_run(out) else None
            began = None
            if stored is not None:
                written = read_settings(config_file) if config_file is not None else {}
                config = _resumed_config(out, stored[0], {**written, **settings}, start)
                first_weights = _recorded_start(out, stored[0])
            else:
                began = _open_starting_run(start)
                first_weights = began.checkpoint if began is not None else None
                config = TrainConfig(**chosen_settings(settings, config=config_file, start=began.config.train if began is not None else None))
                _check_start(config, began)
            cached, raw = features, shards
            if stored is not None and cached is None and raw is None:
                data = localize(stored[0].data, cache=shard_cache, cache_bytes=shard_cache_bytes)
                cached, raw = (data, None) if stored[0].source == "features" else (None, data)
            if (cached is None) == (raw is None):
                raise InputError("Give one of --features DIR (cached) and --shards DIR (raw).")
            if cached is not None and (backbone or weights):
                raise InputError("--backbone and --weights are for --shards; features were made by the network that their file names.")
            return _Request(config=config, stored=stored, began=began, first_weights=first_weights, cached=cached, raw=raw)

        asked = processes.run_all(read)
        stored, config = asked.stored, asked.config
        config = replace(config, precision=decoder_precision(config.precision, torch_device))
        with hold_lock(out, "train", "training") if processes.is_main else nullcontext():

            def prepare() -> tuple[RunConfig, TrainingData, Vocabulary]:
                if asked.cached is not None:
                    data = open_cached(asked.cached, torch_device)
                else:
                    assert asked.raw is not None
                    data = open_raw(
                        asked.raw,
                        out,
                        RawConfig(
                            backbone=backbone or (stored[0].network.backbone if stored else "resnet152"),
                            weights=weights or (stored[0].network.weights if stored else None),
                            augment=config.augment,
                            precision=config.precision,
                            epochs=config.epochs,
                            threads=workers,
                            on_error=config.on_error,
                        ),
                        torch_device,
                        quiet=quiet or not processes.is_main,
                    )
                return _identified(out, config, data, vocab, stored, asked.began, processes)

            run_config, data, vocabulary = processes.main_first(prepare)
            return run_training(
                out, run_config, data, vocabulary, torch_device, processes, quiet=quiet, max_steps=max_steps, start=asked.first_weights
            )


@dataclass(frozen=True, kw_only=True)
class StartingRun:
    """The run that a training has its first weights from: what it was, and the checkpoint that is taken."""

    folder: Path
    config: RunConfig
    vocabulary: Vocabulary
    checkpoint: Path

    @property
    def identity(self) -> dict[str, str]:
        """For the new run's config."""
        return {"run": str(self.folder.resolve()), "checkpoint": self.checkpoint.name, "sha256": file_sha256(self.checkpoint / MODEL_FILE)}


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a training is asked to be, read and checked: a new run, perhaps with a start, or one that is ``stored``.

    ``first_weights`` is the checkpoint to begin with where the run has none of its own.
    """

    config: TrainConfig
    stored: tuple[RunConfig, Vocabulary] | None
    began: StartingRun | None
    first_weights: Path | None
    cached: Path | None
    raw: Path | None


def _open_starting_run(folder: Path | None) -> StartingRun | None:
    if folder is None:
        return None
    config, vocabulary = read_config(folder)
    checkpoint, position, _ = find_checkpoint(folder)
    if position.best is not None:
        checkpoint, _ = best_checkpoint(folder, position)
    return StartingRun(folder=folder, config=config, vocabulary=vocabulary, checkpoint=checkpoint)


def _recorded_start(out: Path, stored: RunConfig) -> Path | None:
    """The checkpoint that a run of which nothing is saved yet has to begin with, as its config has it."""
    if stored.start is None or holds_checkpoints(out):
        return None
    checkpoint = Path(stored.start["run"]) / "checkpoints" / stored.start["checkpoint"]
    there = file_sha256(checkpoint / MODEL_FILE) if (checkpoint / MODEL_FILE).is_file() else "nothing"
    if there != stored.start["sha256"]:
        raise MismatchError(
            f"{out}: this run has no checkpoint yet, and begins with the weights of {checkpoint} (SHA-256 {stored.start['sha256']}), where {there} "
            "is now. Put them back, or train into another --out."
        )
    return checkpoint


def _check_start(config: TrainConfig, began: StartingRun | None) -> None:
    if began is None:
        if config.self_critical:
            raise InputError("--self-critical needs a captioner that can speak already: give --from RUN, a run that was trained without it.")
        return
    there = asdict(began.config.train)
    for name in ARCHITECTURE:
        if there[name] != getattr(config, name):
            raise MismatchError(
                f"{option(name)} {getattr(config, name)}: the run that --from names, {began.folder}, has {there[name]}. Leave the option away."
            )


def _check_start_fits(began: StartingRun, data: TrainingData, vocab: Path | None) -> None:
    stored = began.config
    sides = [
        *stored.network.sides(data.network),
        ("digest of the vocabulary", stored.vocabulary_digest, vocabulary_digest(read_vocabulary(vocab)) if vocab else stored.vocabulary_digest),
    ]
    refuse_differences(sides, f"{began.folder}: the run that --from names has another", "Train on what it was trained on.")


def _identified(
    out: Path,
    config: TrainConfig,
    data: TrainingData,
    vocab: Path | None,
    stored: tuple[RunConfig, Vocabulary] | None,
    began: StartingRun | None,
    processes: ProcessGroup,
) -> tuple[RunConfig, TrainingData, Vocabulary]:
    """What the run is, checked against what it was, and written down."""
    check_units(units_of(data.source.table, captions_per_image=config.captions_per_image))
    if stored is not None:
        vocabulary = stored[1]
        _check_resumable(out, stored[0], data, read_vocabulary(vocab) if vocab is not None else vocabulary)
    else:
        if began is not None:
            _check_start_fits(began, data, vocab)
            vocabulary = began.vocabulary
        else:
            vocabulary = read_vocabulary(vocab) if vocab else vocabulary_of(data.source.table, min_count=config.min_count).vocabulary
        if data.kind == "features" and data.network.weights == RANDOM and processes.is_main:
            _keep_weights(data.path, out)
    shape = {known.name: getattr(config, known.name) for known in fields(DecoderConfig) if known.name in KINDS}
    decoder = DecoderConfig(feature_dim=data.feature_dim, vocabulary_size=len(vocabulary), **shape)
    run_config = RunConfig(
        train=config,
        decoder=decoder,
        network=data.network,
        vocabulary_digest=vocabulary_digest(vocabulary),
        source=data.kind,
        data=origin(data.path),
        data_digest=data.data_digest,
        versions=library_versions("torch", "torchvision", "numpy", "safetensors"),
        start=stored[0].start if stored is not None else began.identity if began is not None else None,
    )
    if processes.is_main:
        write_config(out, run_config, vocabulary)
    return run_config, data, vocabulary


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


def _resumed_config(out: Path, stored: RunConfig, settings: dict[str, Any], start: Path | None) -> TrainConfig:
    there = asdict(stored.train)
    started = stored.start["run"] if stored.start is not None else None
    if start is not None and str(start.resolve()) != started:
        raise MismatchError(
            f"{out}: this run has its first weights from {started or 'nowhere'}, now --from {start} is asked for. Leave the option away."
        )
    for name, value in settings.items():
        if name not in MAY_CHANGE and there[name] != value and (name, value) != ("precision", "auto"):
            raise MismatchError(
                f"{out}: this run was started with {option(name)} {there[name]}, now {value} is asked for. Leave the option "
                "away, or choose another --out."
            )
    return TrainConfig(**{**there, **{name: value for name, value in settings.items() if name in MAY_CHANGE}})


def _check_resumable(out: Path, stored: RunConfig, data: TrainingData, vocabulary: Vocabulary) -> None:
    sides = [
        ("source", stored.source, data.kind),
        ("digest of the training data", stored.data_digest, data.data_digest),
        *stored.network.sides(data.network),
        ("digest of the vocabulary", stored.vocabulary_digest, vocabulary_digest(vocabulary)),
    ]
    refuse_differences(sides, f"{out}: this run was started with another", "Resume it with what it was started with, or train into another --out.")


def _keep_weights(features: Path, out: Path) -> None:
    source = features / KEPT_FILE
    if not source.is_file():
        raise InputError(f"{source}: the random backbone's weights are missing; a run could caption nothing without them. Cache the features again.")
    with committed_file(out / KEPT_FILE) as target, source.open("rb") as file:
        shutil.copyfileobj(file, target)
