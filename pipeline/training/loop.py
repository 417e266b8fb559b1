"""The training loop: the same for raw shards and cached features, in one process or several.

The state of the data stream is (epoch, step), the state of the model is in the checkpoint: a resumed training continues with exactly the next batch.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.execution.progress import Progress
from pipeline.loading.batches import CaptionBatch, EncodedCaptions, to_device, training_batches
from pipeline.loading.order import steps_per_epoch
from pipeline.loading.training_data import FeatureExtractor, feature_extractor
from pipeline.runs.checkpoints import BestValidation
from pipeline.training.cross_entropy import CrossEntropyStep
from pipeline.training.distributed import ProcessGroup
from pipeline.training.interruption import Interrupted, interruptible
from pipeline.training.metrics_log import AverageMeter, MetricsLog
from pipeline.training.prepare import PreparedRun
from pipeline.training.self_critical import Reward, SelfCriticalStep
from pipeline.training.train_state import TrainState
from pipeline.training.validation import Validator
from shards.errors import DamageError

NO_VAL = (
    "There is no val split: nothing was validated, and there is no best checkpoint. To get one, make the shards again with: "
    "python cli.py shard --holdout val=0.1"
)


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """The result of a training; values that this process has not measured are None.

    Attributes:
        steps: The global step that was reached.
        loss, val_loss: Of the last logged step, and of the last validation.
        best: The best validation, of earlier processes of the run too.
        seconds_per_epoch: Median over the epochs that were trained from their first step.
        captions_per_second, data_wait: Of the last line of the log; ``data_wait`` is the fraction of the time spent waiting for data.
        notes: Messages about the data, and about damaged checkpoints.
    """

    steps: int
    loss: float | None
    val_loss: float | None
    best: BestValidation | None
    seconds_per_epoch: float | None
    captions_per_second: float | None
    data_wait: float
    notes: tuple[str, ...]


class Trainer:
    """Trains a prepared run: epochs of steps, with log, checkpoints, and validation after each epoch.

    Args:
        quiet: Show no progress bars.
        max_steps: Stop at this global step.

    Raises:
        DamageError, MismatchError: The latest checkpoint is damaged, or does not fit the run.
    """

    def __init__(self, run: PreparedRun, device: torch.device, processes: ProcessGroup, *, quiet: bool, max_steps: int | None = None) -> None:
        settings, table = run.config.train, run.data.source.table
        self.run, self.settings, self.device, self.processes = run, settings, device, processes
        self.quiet = quiet or not processes.is_main_process
        self.steps_per_epoch = steps_per_epoch(table, batch_size=settings.batch_size, captions_per_image=settings.captions_per_image)
        self.state = TrainState(
            run.out, run.config, device, processes, steps_per_epoch=self.steps_per_epoch, initial_checkpoint=run.initial_checkpoint
        )
        processes.barrier()  # no process removes a checkpoint while another one reads it
        self.encoded, extract_features = EncodedCaptions(table, run.vocabulary, device), feature_extractor(run.data)
        self.validator = self._open_validator(extract_features)
        self.compute_gradients = self._gradient_function(extract_features)
        last_step = self.steps_per_epoch * settings.epochs
        self.total_steps = last_step if max_steps is None else min(last_step, max_steps)
        self._check_position()
        after_validation = self.state.position.step_in_epoch < self.steps_per_epoch
        self.log = MetricsLog(run.out, self.state.position, after_validation=after_validation) if processes.is_main_process else None
        self.meter = AverageMeter(processes, self_critical=settings.self_critical)
        self.loss: float | None = None
        self.val_loss: float | None = None
        self.epoch_seconds: list[float] = []

    def fit(self) -> TrainSummary:
        """Train from the current position to the last epoch.

        Raises:
            Interrupted: Ctrl-C, after a checkpoint was saved.
            InputError: The training diverged.
            DamageError, ResourceError: The data are damaged; a file cannot be written.
        """
        state = self.state
        state.start()
        with (
            contextlib.closing(self.log) if self.log is not None else contextlib.nullcontext(),
            interruptible(self.processes, self.device) as is_interrupted,
            Progress("Training", total=max(self.total_steps - state.position.step, 0), unit="steps", quiet=self.quiet) as progress,
        ):
            while not self._is_finished():
                started, is_complete = time.perf_counter(), state.position.step_in_epoch == 0
                self._train_epoch(progress, is_interrupted)
                if state.position.step_in_epoch < self.steps_per_epoch:
                    break  # max_steps
                if is_complete:
                    self.epoch_seconds.append(time.perf_counter() - started)
                self._end_epoch()
            if not state.is_saved:
                state.save()
        self.processes.barrier()  # the others would take a process that ends earlier for a failed one
        return self._summary()

    def _train_epoch(self, progress: Progress, is_interrupted: Callable[[int], bool]) -> None:
        """Train on the remaining batches of the epoch, up to ``total_steps``."""
        state, settings = self.state, self.settings
        batches = training_batches(
            self.run.data.source,
            self.encoded,
            seed=settings.seed,
            epoch=state.position.epoch,
            batch_size=settings.batch_size,
            captions_per_image=settings.captions_per_image,
            first_step=state.position.step_in_epoch,
            rank_slice=self.processes.rank_slice,
        )
        with contextlib.closing(batches):
            while state.position.step_in_epoch < self.steps_per_epoch and state.position.step < self.total_steps:
                started = time.perf_counter()
                batch = to_device(next(batches), self.device)
                loaded = time.perf_counter()
                lr = settings.lr_at(state.position.step, self.steps_per_epoch)
                loss = state.train_step(self.compute_gradients, batch, lr)
                self.meter.update(loss, batch.batch_captions, data_seconds=loaded - started, seconds=time.perf_counter() - started)
                progress.advance(1, note=self.meter.progress_note)
                self._log_step(lr)
                self._save_step(interrupted=is_interrupted(state.position.step))

    def _log_step(self, lr: float) -> None:
        """Write a line of the log every ``log_every`` steps, and after the last step."""
        position = self.state.position
        if position.step % self.settings.log_every == 0 or position.step == self.total_steps:
            line = self.meter.log_line(position, lr, self.steps_per_epoch)
            self.loss = line["loss"]
            if self.log is not None:
                self.log.write(line)

    def _save_step(self, *, interrupted: bool) -> None:
        """Save a checkpoint if one is due, or the training was interrupted."""
        state = self.state
        # After an epoch's last step the validation comes first, so that this step is saved once.
        if interrupted or (state.position.step_in_epoch < self.steps_per_epoch and state.checkpoint_is_due):
            state.save()
        if interrupted:
            raise Interrupted(f"Stopped after step {state.position.step} of {self.total_steps}; a checkpoint was saved.")

    def _end_epoch(self) -> None:
        """Validate, and save a checkpoint if one is due."""
        state = self.state
        state.check_finite()
        result = self.validator.validate(state.captioning_model) if self.validator is not None else None
        if result is not None:
            self.val_loss = result.loss
            if self.log is not None:
                self.log.write_validation(state.position, result)
        state.end_epoch(result.cider if result is not None else None)
        if state.checkpoint_is_due:
            state.save()

    def _is_finished(self) -> bool:
        """Whether the last epoch or step is done, or patience has run out.

        An epoch that was interrupted after its last step has still to be validated.
        """
        position, settings = self.state.position, self.settings
        if position.epoch >= settings.epochs or (position.step >= self.total_steps and position.step_in_epoch < self.steps_per_epoch):
            return True
        if settings.patience is None or position.best is None:
            return False
        return position.epoch - position.best.step // self.steps_per_epoch >= settings.patience

    def _check_position(self) -> None:
        position = self.state.position
        expected_step = position.epoch * self.steps_per_epoch + position.step_in_epoch
        if position.step != expected_step or position.step_in_epoch > self.steps_per_epoch:
            raise DamageError(
                f"{self.run.out}: the latest checkpoint has an impossible position: epoch {position.epoch}, step {position.step_in_epoch} of "
                f"{self.steps_per_epoch} in it, global step {position.step}."
            )

    def _open_validator(self, extract_features: FeatureExtractor) -> Validator | None:
        data = self.run.data
        if data.val is None:
            return None
        return Validator(
            data.val,
            self.run.vocabulary,
            extract_features,
            data.val_pictures,
            images=self.settings.val_images,
            device=self.device,
            processes=self.processes,
            quiet=self.quiet,
        )

    def _gradient_function(self, extract_features: FeatureExtractor) -> Callable[[CaptionBatch], Tensor]:
        """The function that computes the gradients of a batch, and returns its loss."""
        captioner, processes = self.state.captioner, self.processes
        model = captioner if processes.world_size == 1 else DistributedDataParallel(captioner, broadcast_buffers=False)
        if not self.settings.self_critical:
            return CrossEntropyStep(captioner, model, extract_features, self.settings, self.steps_per_epoch, processes)
        reward = Reward(self.run.data.source.table, self.run.vocabulary)
        return SelfCriticalStep(captioner, model, extract_features, self.settings, processes, reward)

    def _summary(self) -> TrainSummary:
        seconds = sorted(self.epoch_seconds)
        return TrainSummary(
            steps=self.state.position.step,
            loss=self.loss,
            val_loss=self.val_loss,
            best=self.state.position.best,
            seconds_per_epoch=seconds[len(seconds) // 2] if seconds else None,
            captions_per_second=self.meter.captions_per_second,
            data_wait=self.meter.data_wait,
            notes=(*self.run.data.notes, *self.state.notes, *([] if self.run.data.val is not None else [NO_VAL])),
        )
