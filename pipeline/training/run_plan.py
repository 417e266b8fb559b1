"""The plan of a training: a new run or a resumed one, with which settings, data and initial weights. Checked before any data is opened."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from model.vocabulary import Vocabulary
from pipeline.backbone.backbones import KEPT_FILE
from pipeline.runs.recipes import chosen_settings, read_settings
from pipeline.runs.run import CONFIG_FILE, VOCABULARY_FILE, RunConfig, is_run, read_config
from pipeline.runs.train_config import TrainConfig
from pipeline.training.config import DataConfig
from pipeline.training.initial_run import InitialRun, check_initial_run, open_initial_run, recorded_initial_checkpoint
from shards.atomic import disk_errors
from shards.errors import InputError, MismatchError, OccupiedError, SettingsError
from shards.remote import localize

# The settings that may be changed on resuming.
CHANGEABLE = ("epochs", "patience", "threads", "accumulate", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "log_every")


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a training is going to do.

    Attributes:
        recorded: Config and vocabulary of the run that is resumed; None: a new run.
        initial_run: The run that a new run takes its initial weights from.
        initial_checkpoint: The checkpoint's folder with the initial weights, if the run has no checkpoint of its own.
    """

    out: Path
    config: TrainConfig
    data: DataConfig
    recorded: tuple[RunConfig, Vocabulary] | None = None
    initial_run: InitialRun | None = None
    initial_checkpoint: Path | None = None


def plan_run(out: Path, data: DataConfig, *, settings: dict[str, Any], config_file: Path | None, init_from: Path | None, resume: bool) -> RunPlan:
    """Plan a training; the arguments are those of :func:`pipeline.training.train.train`.

    Raises:
        OccupiedError: ``out`` holds a run and ``resume`` is not given, or holds something else.
        MismatchError: The run was started with other settings.
        InputError, DamageError: A setting, a file or a run is missing, damaged or impossible.
    """
    _check_out(out, resume=resume)
    if is_run(out):
        recorded = read_config(out)
        from_file = read_settings(config_file) if config_file is not None else {}
        config = _resumed_config(out, recorded[0], {**from_file, **settings}, init_from)
        initial_checkpoint = recorded_initial_checkpoint(out, recorded[0])
        data = _checked(_with_recorded_data(data, recorded[0]))
        return RunPlan(out=out, config=config, data=data, recorded=recorded, initial_checkpoint=initial_checkpoint)
    initial_run = open_initial_run(init_from) if init_from is not None else None
    initial_config = initial_run.config.train if initial_run is not None else None
    config = TrainConfig(**chosen_settings(settings, config=config_file, initial_run=initial_config))
    check_initial_run(config, initial_run)
    initial_checkpoint = initial_run.checkpoint if initial_run is not None else None
    return RunPlan(out=out, config=config, data=_checked(data), initial_run=initial_run, initial_checkpoint=initial_checkpoint)


def _check_out(out: Path, *, resume: bool) -> None:
    if any("\ud800" <= character <= "\udfff" for character in str(out)):  # TensorBoard and safetensors take no such path
        raise InputError(f"{out}: the name of a run's folder must be valid UTF-8. Choose another `out`.")
    with disk_errors(out):
        if out.exists() and not out.is_dir():
            raise OccupiedError(f"{out}: is a file. Choose a new or empty folder as `out`.")
        entries = sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) if out.is_dir() else []
    if is_run(out):
        if not resume:
            raise OccupiedError(f"{out}: already holds a run. Resume it with `resume`, or choose another `out`.")
    elif set(entries) - {KEPT_FILE, VOCABULARY_FILE}:
        raise OccupiedError(f"{out}: is not empty and not a run ({entries[0]}; no {CONFIG_FILE}). Choose a new or empty folder as `out`.")


def _resumed_config(out: Path, recorded: RunConfig, settings: dict[str, Any], init_from: Path | None) -> TrainConfig:
    """The recorded settings, with those of ``settings`` that may be changed."""
    recorded_start = recorded.start["run"] if recorded.start is not None else None
    if init_from is not None and str(init_from.resolve()) != recorded_start:
        raise MismatchError(f"{out}: this run was started with `from` {recorded_start or 'no run'}, but {init_from} was given. Omit `from`.")
    recorded_settings = asdict(recorded.train)
    for name, value in settings.items():
        if name not in CHANGEABLE and recorded_settings[name] != value and (name, value) != ("precision", "auto"):
            raise MismatchError(
                f"{out}: this run was started with `{name}` {recorded_settings[name]}, but {value} was given. Omit `{name}`, or choose another `out`."
            )
    return TrainConfig(**{**recorded_settings, **{name: value for name, value in settings.items() if name in CHANGEABLE}})


def _with_recorded_data(data: DataConfig, recorded: RunConfig) -> DataConfig:
    """The run's own data, if no others are given; remote shards are fetched into the cache."""
    if data.features is not None or data.shards is not None:
        return data
    folder = localize(recorded.data, cache=data.shard_cache, cache_bytes=data.shard_cache_bytes)
    return replace(data, features=folder) if recorded.source == "features" else replace(data, shards=folder)


def _checked(data: DataConfig) -> DataConfig:
    if data.features is not None and data.shards is not None:
        raise SettingsError("`features` and `shards` were both given. Omit one: a run is trained on cached features or on raw images.")
    if data.features is None and data.shards is None:
        raise SettingsError("A new run needs data: give `features` (a folder of cached features) or `shards` (raw images).")
    if data.features is not None and (data.backbone or data.weights):
        raise SettingsError("`backbone` and `weights` need `shards`: features record the backbone that computed them.")
    return data
