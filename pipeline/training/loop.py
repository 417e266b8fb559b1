"""The training loop: one for raw shards and for cached features, alone or among several processes.

The stream's state is (epoch, step), the model's is in the checkpoint: a resumed training goes on with the very batch that comes next.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from model.captioner import Captioner
from model.vocabulary import Vocabulary
from pipeline.execution.progress import Progress
from pipeline.loading.batches import CaptionBatch, EncodedCaptions, to_device, training_batches
from pipeline.loading.order import steps_per_epoch
from pipeline.loading.training_data import FeatureExtractor, TrainingData, feature_extractor
from pipeline.runs.checkpoints import BestValidation, TrainingPosition
from pipeline.runs.run import RunConfig
from pipeline.runs.train_config import TrainConfig
from pipeline.training.cross_entropy import CrossEntropyStep
from pipeline.training.distributed import ProcessGroup
from pipeline.training.interruption import Interrupted, interruptible
from pipeline.training.learner import Learner
from pipeline.training.metrics_log import Meter, MetricsLog
from pipeline.training.self_critical import Reward, SelfCriticalStep
from pipeline.training.validation import Validation
from shards.errors import DamageError


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How a training ended.

    ``loss`` is of the last step that this process logged, ``captions_per_second`` of its last steps, ``seconds_per_epoch`` of the epochs that it did
    whole; None where there was none.
    """

    steps: int
    loss: float | None
    val_loss: float | None
    best: BestValidation | None
    seconds_per_epoch: float | None
    captions_per_second: float | None
    waited_share: float
    notes: tuple[str, ...]


def run_training(
    out: Path,
    config: RunConfig,
    data: TrainingData,
    vocabulary: Vocabulary,
    device: torch.device,
    processes: ProcessGroup,
    *,
    quiet: bool,
    max_steps: int | None = None,
    start: Path | None = None,
) -> TrainSummary:
    """Train from the newest checkpoint of ``out``, or from the start, to the last epoch.

    Args:
        start: A checkpoint's folder, whose weights are those of the first step; by default they are drawn at random.

    Raises:
        Interrupted: Ctrl-C, after a checkpoint.
        InputError: The loss is not finite any more, or there are too few images.
        DamageError, ResourceError: As the parts say.
    """
    settings = config.train
    per_epoch = steps_per_epoch(data.source.table, batch_size=settings.batch_size, captions_per_image=settings.captions_per_image)
    learner = Learner(out, config, device, processes, per_epoch=per_epoch, start=start)
    processes.barrier()  # nobody removes a checkpoint that another is reading
    encoded, features_of = EncodedCaptions(data.source.table, vocabulary, device), feature_extractor(data)
    validation = _validation(data, vocabulary, features_of, settings, device, processes, quiet=quiet)
    gradients = _gradients(learner.captioner, data, vocabulary, features_of, settings, per_epoch, processes)
    total = per_epoch * settings.epochs if max_steps is None else min(per_epoch * settings.epochs, max_steps)
    position = learner.position
    if position.step != position.epoch * per_epoch + position.step_in_epoch or position.step_in_epoch > per_epoch:
        raise DamageError(f"{out}: the newest checkpoint says epoch {position.epoch}, step {position.step}, which no training of it reaches.")
    log = MetricsLog(out, position, validated=position.step_in_epoch < per_epoch) if processes.is_main else None
    loss = val_loss = None
    epoch_seconds: list[float] = []
    meter = Meter(processes, rewarded=settings.self_critical)

    def rest_of_epoch(progress: Progress, interrupted: Callable[[int], bool]) -> None:
        """Train on what is left of the epoch, up to the last step."""
        nonlocal loss
        batches = training_batches(
            data.source,
            encoded,
            seed=settings.seed,
            epoch=learner.position.epoch,
            batch_size=settings.batch_size,
            captions_per_image=settings.captions_per_image,
            first_step=learner.position.step_in_epoch,
            rank_slice=processes.rank_slice,
        )
        with contextlib.closing(batches):
            while learner.position.step_in_epoch < per_epoch and learner.position.step < total:
                asked = time.perf_counter()
                batch = to_device(next(batches), device)
                came = time.perf_counter()
                lr = settings.lr_at(learner.position.step, per_epoch)
                step_loss = learner.learn(gradients, batch, lr)
                step = learner.position.step
                meter.add(step_loss, batch.batch_captions, waited=came - asked, seconds=time.perf_counter() - asked)
                progress.advance(1, note=meter.note)
                if step % settings.log_every == 0 or step == total:
                    line = meter.line(learner.position, lr, per_epoch)
                    loss = line["loss"]
                    if log is not None:
                        log.write(line)
                stop = interrupted(step)
                # After the epoch's last step it is validated first: a checkpoint of this step is saved once.
                if stop or (learner.position.step_in_epoch < per_epoch and learner.save_is_due):
                    learner.save()
                if stop:
                    raise Interrupted(f"Stopped after step {step} of {total}; all of it is saved.")

    learner.begin()
    with (
        contextlib.closing(log) if log is not None else contextlib.nullcontext(),
        interruptible(processes, device) as interrupted,
        Progress("Training", total=max(total - position.step, 0), unit="steps", quiet=quiet or not processes.is_main) as progress,
    ):
        while not _is_over(learner.position, settings, per_epoch, total):
            began, whole = time.perf_counter(), learner.position.step_in_epoch == 0
            rest_of_epoch(progress, interrupted)
            if learner.position.step_in_epoch < per_epoch:
                break
            if whole:
                epoch_seconds.append(time.perf_counter() - began)
            learner.check_finite()
            found = validation.measure(learner.captioning_model) if validation is not None else None
            if found is not None:
                val_loss = found.loss
                if log is not None:
                    log.validated(learner.position, found)
            learner.begin_next_epoch(found.cider if found is not None else None)
            if learner.save_is_due:
                learner.save()
        if not learner.is_saved:
            learner.save()
    processes.barrier()  # a process that ended sooner would be missed
    return TrainSummary(
        steps=learner.position.step,
        loss=loss,
        val_loss=val_loss,
        best=learner.position.best,
        seconds_per_epoch=sorted(epoch_seconds)[len(epoch_seconds) // 2] if epoch_seconds else None,
        captions_per_second=meter.captions_per_second,
        waited_share=meter.waited_share,
        notes=(*data.notes, *learner.notes),
    )


def _validation(
    data: TrainingData,
    vocabulary: Vocabulary,
    features_of: FeatureExtractor,
    settings: TrainConfig,
    device: torch.device,
    processes: ProcessGroup,
    *,
    quiet: bool,
) -> Validation | None:
    if data.val is None:
        return None
    images = settings.val_images
    return Validation(data.val, vocabulary, features_of, data.val_pictures, images=images, device=device, processes=processes, quiet=quiet)


def _gradients(
    captioner: Captioner,
    data: TrainingData,
    vocabulary: Vocabulary,
    features_of: FeatureExtractor,
    settings: TrainConfig,
    per_epoch: int,
    processes: ProcessGroup,
) -> Callable[[CaptionBatch], Tensor]:
    """What fills the parameters' gradients from a batch, and gives its loss."""
    model = captioner if processes.size == 1 else DistributedDataParallel(captioner, broadcast_buffers=False)
    if not settings.self_critical:
        return CrossEntropyStep(captioner, model, features_of, settings, per_epoch, processes)
    table = data.source.table
    reward = Reward(table, vocabulary)
    return SelfCriticalStep(captioner, model, features_of, settings.precision, processes, table, reward, vocabulary, settings.samples)


def _is_over(position: TrainingPosition, settings: TrainConfig, per_epoch: int, total: int) -> bool:
    """Whether nothing is left to do: the last epoch or step is done, or so many epochs have passed without better captions that patience ends.

    An epoch that was stopped after its last step has still to be validated.
    """
    if position.epoch >= settings.epochs or (position.step >= total and position.step_in_epoch < per_epoch):
        return True
    if settings.patience is None or position.best is None:
        return False
    return position.epoch - position.best.step // per_epoch >= settings.patience
