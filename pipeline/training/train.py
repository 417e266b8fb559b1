"""Feature files or shards -> run directory: plans a training, prepares it, and trains.

Under torchrun the processes train together, and only the main process writes files.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.backbone.precision import decoder_precision
from pipeline.execution.devices import pick_device, prepare_device
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.distributed import ProcessGroup, local_device, process_group
from pipeline.training.loop import Trainer, TrainSummary
from pipeline.training.prepare import prepare_run
from pipeline.training.reproducibility import fixed_threads
from pipeline.training.run_plan import RunPlan, plan_run
from shards.atomic import hold_lock
from shards.errors import NoSpaceError


def train(
    *,
    out: Path,
    data: DataConfig | None = None,
    settings: dict[str, Any] | None = None,
    config_file: Path | None = None,
    init_from: Path | None = None,
    resume: bool = False,
    max_steps: int | None = None,
    runtime: RuntimeConfig | None = None,
) -> TrainSummary:
    """Train a captioner into ``out``.

    Args:
        out: The run directory.
        data: What to train on; may be omitted on resuming.
        settings: Fields of :class:`pipeline.runs.train_config.TrainConfig`. Those that are missing or None have the recipe's values, or on
            resuming the run's.
        config_file: A TOML file of such fields; ``settings`` override it.
        init_from: A run whose best weights, or else latest weights, are the initial ones. Its vocabulary and architecture are used too.
        resume: Resume the run in ``out`` from its latest checkpoint, or start it.
        max_steps: Stop at this global step (for measurements and tests).

    Raises:
        OccupiedError: ``out`` holds a run and ``resume`` is not given, or holds something else.
        MismatchError: The run was started with other data or settings.
        Interrupted: Ctrl-C, after a checkpoint was saved.
        InputError, DamageError, ResourceError: As :func:`plan_run`, :func:`prepare_run` and :meth:`Trainer.fit`.
    """
    data, runtime = data or DataConfig(), runtime or RuntimeConfig()
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    device = pick_device(local_device(runtime.device))
    prepare_device(device)

    with process_group(device) as processes:

        def planned() -> RunPlan:
            return plan_run(out, data, settings=given, config_file=config_file, init_from=init_from, resume=resume)

        plan = processes.run_on_all(planned)
        threads = _threads(plan, given, device, processes)
        plan = replace(plan, config=replace(plan.config, precision=decoder_precision(plan.config.precision, device), threads=threads))
        lock = hold_lock(out, "train", "training") if processes.is_main_process else nullcontext()
        with fixed_threads(threads), _resumable(out), lock:
            run = processes.main_process_first(lambda: prepare_run(plan, runtime, device, processes, max_steps=max_steps))
            return Trainer(run, device, processes, quiet=runtime.quiet, max_steps=max_steps).fit()


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """Say of a full disk that the run can be resumed: another folder, as a command that writes files would advise, could not be."""
    try:
        yield
    except NoSpaceError as error:
        if not error.path.is_relative_to(out):
            raise
        raise NoSpaceError(out, error.reason, "Free some, then run again with `resume`: what was saved is kept.") from error


def _threads(plan: RunPlan, given: dict[str, Any], device: torch.device, processes: ProcessGroup) -> int | None:
    """The number of threads of each process; None on GPUs.

    A resumed run keeps its own, unless several processes share the cores: how many each may use depends on how many there are.
    """
    if device.type != "cpu":
        return None
    recorded = plan.config.threads if processes.world_size == 1 else None
    return given.get("threads") or recorded or torch.get_num_threads()
