"""A captioner in training: its weights, the optimizer that changes them, where it stands, and what of it is saved."""

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
from pipeline.runs.checkpoints import BestValidation, TrainingPosition, find_checkpoint, holds_checkpoints, load_model, load_training, save_checkpoint
from pipeline.runs.run import RunConfig
from pipeline.runs.train_config import TrainConfig
from pipeline.training.averaging import average_epoch, without_stale_average
from pipeline.training.distributed import ProcessGroup
from shards.errors import InputError


class Learner:
    """What is trained: as the newest checkpoint of ``out`` has it, or as it is before the first step.

    Args:
        out: The run's folder.
        per_epoch: Steps of an epoch.
        start: A checkpoint's folder, whose weights are those of the first step; None: they are drawn at random.

    Attributes:
        captioner: With the newest weights.
        position: Where it stands.
        notes: A line for each damaged checkpoint that was passed over.

    Raises:
        DamageError, MismatchError: The checkpoint cannot be read, or is of another captioner.
    """

    def __init__(self, out: Path, config: RunConfig, device: torch.device, processes: ProcessGroup, *, per_epoch: int, start: Path | None) -> None:
        self.out, self.settings, self.processes, self.per_epoch = out, config.train, processes, per_epoch
        torch.manual_seed(config.train.seed)
        self.captioner = Captioner(config.decoder).to(device)
        self.optimizer = adamw(self.captioner, config.train)
        self.position, self.notes, newest = TrainingPosition(epoch=0, step_in_epoch=0, step=0), list[str](), None
        if holds_checkpoints(out):
            newest, position, self.notes = find_checkpoint(out)
            self.position = without_stale_average(position, config.train, per_epoch)
        first_weights = newest or start
        if first_weights is not None:
            load_model(first_weights, self.captioner)
        # In a checkpoint the model is what captions; what is trained, where it is another, comes with the training.
        self._mean = AveragedModel(self.captioner, use_buffers=True) if config.train.average_last else None
        if newest is not None:
            load_training(newest, self.captioner, self.optimizer)
        self._saved, self._saved_at = self.position, time.monotonic()

    @property
    def captioning_model(self) -> Captioner:
        """What captions: the mean of some epochs' weights, if there is one, else the newest weights."""
        if self._mean is None or not self.position.averaged:
            return self.captioner
        return cast("Captioner", self._mean.module)

    def begin(self) -> None:
        """The steps begin now: what comes before is no time between checkpoints."""
        self.captioner.train()
        self._saved_at = time.monotonic()

    def learn(self, gradients: Callable[[CaptionBatch], Tensor], batch: CaptionBatch, lr: float) -> Tensor:
        """One step of the optimizer: the loss of this process, float32 (). An epoch's last step settles what captions from there on.

        Args:
            gradients: Fills the parameters' gradients, and gives the loss.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        torch.manual_seed(step_seed(self.settings.seed, self.position.step, self.processes.rank))
        loss = gradients(batch)
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.captioner.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.position = replace(self.position, step_in_epoch=self.position.step_in_epoch + 1, step=self.position.step + 1)
        if self._mean is not None and self.position.step_in_epoch == self.per_epoch:
            self.position = average_epoch(self._mean, self.captioner, self.position, self.settings)
        return loss

    def begin_next_epoch(self, cider: float | None) -> None:
        """Go on to the next epoch; ``cider`` is what the captions of this one scored on val, if they were scored."""
        best = self.position.best
        if cider is not None and (best is None or cider > best.cider):
            best = BestValidation(step=self.position.step, cider=cider)
        self.position = replace(self.position, epoch=self.position.epoch + 1, step_in_epoch=0, best=best)

    @property
    def save_is_due(self) -> bool:
        """Whether the next checkpoint is due: by steps, by the clock, or since this is the best one so far.

        Processes may differ, each having a clock of its own: :meth:`save` asks none of the others for anything.
        """
        position, settings = self.position, self.settings
        if position.best is not None and position.best.step == position.step:
            return True
        if settings.checkpoint_every is not None and position.step // settings.checkpoint_every > self._saved.step // settings.checkpoint_every:
            return True
        return 0 < settings.checkpoint_minutes * 60 <= time.monotonic() - self._saved_at

    @property
    def is_saved(self) -> bool:
        """Whether the newest checkpoint is of this very position."""
        return self.position == self._saved and holds_checkpoints(self.out)

    def save(self) -> None:
        """Commit a checkpoint, in the first process.

        Raises:
            InputError: Weights are no numbers.
            ResourceError: Disk full, not allowed.
        """
        self.check_finite()
        if self.processes.is_main:
            mean = self.captioning_model if self.captioning_model is not self.captioner else None
            save_checkpoint(self.out, self.captioner, self.optimizer, self.position, mean=mean, keep=self.settings.keep_checkpoints)
        self._saved, self._saved_at = self.position, time.monotonic()

    def check_finite(self) -> None:
        """Refuse to keep or to score weights that are no numbers.

        Raises:
            InputError: Says that the training diverged.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.captioner.parameters()):
            raise InputError(
                f"Weights became infinite or no numbers by step {self.position.step}: the training diverged. Checkpoints from before are kept; "
                "start again with a smaller --lr, or with --clip-norm."
            )


def adamw(captioner: Captioner, settings: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer: Adam, or with weight decay AdamW, which spares biases and BatchNorm's scales."""
    matrices = [parameter for parameter in captioner.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in captioner.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of torch's random numbers in one step of one process: dropout and drawn words do not depend on what was before."""
    return int(np.random.SeedSequence([seed, step, rank, 2]).generate_state(1, np.uint64)[0])
