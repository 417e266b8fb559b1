"""The state of a training: weights, optimizer and position, restored from checkpoints and saved to them."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from model.captioner import Captioner
from pipeline.loading.batches import CaptionBatch
from pipeline.runs.checkpoints import (
    BestValidation,
    TrainingPosition,
    check_sizes,
    has_checkpoints,
    latest_checkpoint,
    load_model,
    load_training_state,
    save_checkpoint,
)
from pipeline.runs.run import RunConfig
from pipeline.runs.train_config import TrainConfig
from pipeline.training.averaging import average_epoch, without_stale_average
from pipeline.training.distributed import ProcessGroup
from shards.errors import InputError


class TrainState:
    """The weights, the optimizer and the position of a training: from the latest checkpoint of ``out``, or before the first step.

    Args:
        out: The run's folder.
        initial_checkpoint: A checkpoint's folder with the initial weights; None: random initialization.

    Attributes:
        captioner: With the weights that are being trained.
        position: The progress so far.
        notes: A message for each damaged checkpoint that was skipped.

    Raises:
        DamageError, MismatchError: The checkpoint cannot be read, or belongs to another captioner.
    """

    def __init__(
        self, out: Path, config: RunConfig, device: torch.device, processes: ProcessGroup, *, steps_per_epoch: int, initial_checkpoint: Path | None
    ) -> None:
        self.out, self.settings, self.processes, self.steps_per_epoch = out, config.train, processes, steps_per_epoch
        self.position, self.notes, latest = TrainingPosition(epoch=0, step_in_epoch=0, step=0), list[str](), None
        if has_checkpoints(out):
            latest, position, self.notes = latest_checkpoint(out)
            self.position = without_stale_average(position, config.train, steps_per_epoch)
        checkpoint = latest or initial_checkpoint
        if checkpoint is not None:
            check_sizes(checkpoint, config.decoder)
        torch.manual_seed(config.train.seed)
        self.captioner = Captioner(config.decoder).to(device)
        self.optimizer = adamw(self.captioner, config.train)
        if checkpoint is not None:
            load_model(checkpoint, self.captioner)
        # Copied from the weights used for captioning, before load_training_state() replaces them by those that are being trained.
        self._average = AveragedModel(self.captioner, use_buffers=True) if config.train.average_last else None
        if latest is not None:
            load_training_state(latest, self.captioner, self.optimizer)
        self._saved_position, self._saved_at = self.position, time.monotonic()

    @property
    def captioning_model(self) -> Captioner:
        """The captioner used for captioning: with the average of the last epochs' weights, if there is one, else with the newest weights."""
        if self._average is None or not self.position.averaged:
            return self.captioner
        return cast("Captioner", self._average.module)

    def start(self) -> None:
        """Switch to training mode, and start the clock of the time-based checkpoints."""
        self.captioner.train()
        self._saved_at = time.monotonic()

    def train_step(self, compute_gradients: Callable[[CaptionBatch], Tensor], batch: CaptionBatch, lr: float) -> Tensor:
        """Take one optimizer step, and after an epoch's last one update the weight average.

        Args:
            compute_gradients: Computes the parameters' gradients, and returns the loss.

        Returns:
            This process's part of the loss, float32 ().
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        torch.manual_seed(step_seed(self.settings.seed, self.position.step, self.processes.rank))
        loss = compute_gradients(batch)
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.captioner.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.position = replace(self.position, step_in_epoch=self.position.step_in_epoch + 1, step=self.position.step + 1)
        if self._average is not None and self.position.step_in_epoch == self.steps_per_epoch:
            self.position = average_epoch(self._average, self.captioner, self.position, self.settings)
        return loss

    def end_epoch(self, cider: float | None) -> None:
        """Move on to the next epoch; ``cider`` is this epoch's validation CIDEr, None if it was not scored."""
        best = self.position.best
        if cider is not None and (best is None or cider > best.cider):
            best = BestValidation(step=self.position.step, cider=cider)
        self.position = replace(self.position, epoch=self.position.epoch + 1, step_in_epoch=0, best=best)

    @property
    def checkpoint_is_due(self) -> bool:
        """Whether to save a checkpoint now: by the number of steps, by the clock, or because this is the best validation so far.

        Each process has its own clock, so they may disagree; :meth:`save` communicates with no other process.
        """
        position, saved, settings = self.position, self._saved_position, self.settings
        if position.best is not None and position.best.step == position.step:
            return True
        if settings.checkpoint_every is not None and position.step // settings.checkpoint_every > saved.step // settings.checkpoint_every:
            return True
        return 0 < settings.checkpoint_minutes * 60 <= time.monotonic() - self._saved_at

    @property
    def is_saved(self) -> bool:
        """Whether the latest checkpoint has exactly the current position."""
        return self.position == self._saved_position and has_checkpoints(self.out)

    def save(self) -> None:
        """Commit a checkpoint, in the main process.

        Raises:
            InputError: The weights contain NaN or inf.
            ResourceError: Disk full, permission denied.
        """
        self.check_finite()
        if self.processes.is_main_process:
            average = self.captioning_model if self.captioning_model is not self.captioner else None
            save_checkpoint(self.out, self.captioner, self.optimizer, self.position, average=average, keep=self.settings.keep_checkpoints)
        self._saved_position, self._saved_at = self.position, time.monotonic()

    def check_finite(self) -> None:
        """Check the weights before they are saved or validated.

        Raises:
            InputError: They contain NaN or inf: the training diverged.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.captioner.parameters()):
            raise InputError(
                f"The weights contain NaN or inf at step {self.position.step}: the training diverged. Earlier checkpoints are kept; "
                "start again with a smaller `lr`, or with `clip_norm`."
            )


def adamw(captioner: Captioner, settings: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer: AdamW with weight decay of the weight matrices only, not of biases and BatchNorm's parameters; without weight decay Adam."""
    matrices = [parameter for parameter in captioner.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in captioner.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Torch's random seed for one step of one process, so that dropout and sampled words do not depend on earlier steps or on resuming."""
    return int(np.random.SeedSequence([seed, step, rank, 2]).generate_state(1, np.uint64)[0])
