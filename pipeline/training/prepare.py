"""Carries out the plan of a training up to its first step: opens the data, checks it against the run, and records the run."""

import shutil
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from model.decoder_config import DECODERS, DecoderConfig
from model.vocabulary import Vocabulary
from pipeline.backbone.backbones import KEPT_FILE, RANDOM
from pipeline.captions.vocabulary import read_vocabulary, vocabulary_digest, vocabulary_of
from pipeline.execution.memory import available_bytes
from pipeline.loading.batches import check_units
from pipeline.loading.order import units_of
from pipeline.loading.training_data import RawConfig, TrainingData, open_cached, open_raw
from pipeline.runs.run import RunConfig, refuse_differences, write_config
from pipeline.runs.train_config import SETTING_TYPES, TrainConfig
from pipeline.training.config import RuntimeConfig
from pipeline.training.distributed import ProcessGroup
from pipeline.training.initial_run import check_initial_data
from pipeline.training.run_plan import RunPlan
from shards.atomic import committed_file
from shards.errors import InputError
from shards.remote import origin
from shards.versions import library_versions

# Cached features that need more than this share of the available memory are read from their file while they are needed.
FEATURE_MEMORY_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A recorded run with its opened data, ready to train.

    ``initial_checkpoint`` is the checkpoint's folder with the initial weights, if the run has no checkpoint of its own.
    """

    out: Path
    config: RunConfig
    data: TrainingData
    vocabulary: Vocabulary
    initial_checkpoint: Path | None


def prepare_run(plan: RunPlan, runtime: RuntimeConfig, device: torch.device, processes: ProcessGroup, *, max_steps: int | None = None) -> PreparedRun:
    """Open the data and record the run; only the main process writes.

    Args:
        max_steps: The global step at which training stops, if that is before the last epoch's end.

    Raises:
        MismatchError: The run, or the run that it starts from, was trained on other data or with another vocabulary.
        InputError, DamageError, ResourceError: The data are missing, damaged or too few.
    """
    quiet = runtime.quiet or not processes.is_main_process
    data = _open_data(plan, runtime, device, max_steps=max_steps, quiet=quiet)
    check_units(units_of(data.source.table, captions_per_image=plan.config.captions_per_image))
    if plan.recorded is not None:
        vocabulary = plan.recorded[1]
        _check_resumable(plan.out, plan.recorded[0], data, read_vocabulary(plan.data.vocab) if plan.data.vocab is not None else vocabulary)
    else:
        vocabulary = _new_vocabulary(plan, data)
        _check_language(vocabulary, data)
        if data.kind == "features" and data.network.weights == RANDOM and processes.is_main_process:
            _copy_random_weights(data.path, plan.out)
    config = _run_config(plan, data, vocabulary)
    if processes.is_main_process:
        write_config(plan.out, config, vocabulary)
    return PreparedRun(out=plan.out, config=config, data=data, vocabulary=vocabulary, initial_checkpoint=plan.initial_checkpoint)


def _open_data(plan: RunPlan, runtime: RuntimeConfig, device: torch.device, *, max_steps: int | None, quiet: bool) -> TrainingData:
    if plan.data.features is not None:
        memory_bytes = runtime.feature_memory_bytes
        if memory_bytes is None:
            memory_bytes = int(available_bytes() * FEATURE_MEMORY_SHARE)
        return open_cached(plan.data.features, device, pooled=DECODERS[plan.config.decoder].pooled, memory_bytes=memory_bytes)
    assert plan.data.shards is not None
    recorded = plan.recorded[0].network if plan.recorded is not None else None
    config = RawConfig(
        backbone=plan.data.backbone or (recorded.backbone if recorded else "resnet152"),
        weights=plan.data.weights or (recorded.weights if recorded else None),
        augment=plan.config.augment,
        precision=plan.config.precision,
        epochs=plan.config.epochs,
        max_images=None if max_steps is None else max_steps * plan.config.batch_size,
        threads=runtime.workers,
        on_error=plan.config.on_error,
    )
    return open_raw(plan.data.shards, plan.out, config, device, quiet=quiet)


def _check_resumable(out: Path, recorded: RunConfig, data: TrainingData, vocabulary: Vocabulary) -> None:
    sides = [
        ("source", recorded.source, data.kind),
        ("digest of the training data", recorded.data_digest, data.data_digest),
        *recorded.network.sides(data.network),
        ("digest of the vocabulary", recorded.vocabulary_digest, vocabulary_digest(vocabulary)),
    ]
    refuse_differences(sides, f"{out}: this run was started with another", "Resume it with the original one, or choose another `out`.")


def _new_vocabulary(plan: RunPlan, data: TrainingData) -> Vocabulary:
    if plan.initial_run is not None:
        check_initial_data(plan.initial_run, data, plan.data.vocab)
        return plan.initial_run.vocabulary
    if plan.data.vocab:
        return read_vocabulary(plan.data.vocab)
    return vocabulary_of(data.source.table, min_count=plan.config.min_count).vocabulary


def _check_language(vocabulary: Vocabulary, data: TrainingData) -> None:
    """Refuse words of another language than that of the captions, most of which would be unknown."""
    for source in filter(None, (data.source, data.val)):
        refuse_differences(
            [("language", vocabulary.language, source.table.language)],
            f"The vocabulary and {data.path} do not belong together: the captions are in another",
            "Give a vocabulary of these captions as `vocab`. All splits need one language.",
        )


def _copy_random_weights(features: Path, out: Path) -> None:
    source = features / KEPT_FILE
    if not source.is_file():
        raise InputError(f"{source}: the random backbone's weights are missing; without them a run cannot caption images. Cache the features again.")
    with committed_file(out / KEPT_FILE) as target, source.open("rb") as file:
        shutil.copyfileobj(file, target)


def _run_config(plan: RunPlan, data: TrainingData, vocabulary: Vocabulary) -> RunConfig:
    new_start = plan.initial_run.record() if plan.initial_run is not None else None
    return RunConfig(
        train=plan.config,
        decoder=_decoder_config(plan.config, data.feature_dim, vocabulary),
        network=data.network,
        vocabulary_digest=vocabulary_digest(vocabulary),
        source=data.kind,
        data=origin(data.path),
        data_digest=data.data_digest,
        versions=library_versions("torch", "torchvision", "numpy", "safetensors"),
        start=plan.recorded[0].start if plan.recorded is not None else new_start,
    )


def _decoder_config(config: TrainConfig, feature_dim: int, vocabulary: Vocabulary) -> DecoderConfig:
    architecture = {field.name: getattr(config, field.name) for field in fields(DecoderConfig) if field.name in SETTING_TYPES}
    return DecoderConfig(feature_dim=feature_dim, vocabulary_size=len(vocabulary), **architecture)
