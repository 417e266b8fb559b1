"""The training loop: one for raw shards and for cached features, alone or among several processes.

The stream's state is (epoch, step), the model's is in the checkpoint: a resumed training goes on with the very batch that comes next.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from model.decoder import Captioner
from model.vocabulary import Vocabulary
from pipeline.arithmetic import decoder_arithmetic
from pipeline.averaging import with_this_end, without_earlier_ends
from pipeline.batches import CaptionBatch, Encoded, to_device, training_batches
from pipeline.checkpoints import Best, Position, find_checkpoint, holds_checkpoints, load_model, load_training, save_checkpoint
from pipeline.metrics_log import Meter, MetricsLog
from pipeline.order import steps_per_epoch
from pipeline.progress import Progress
from pipeline.run import RunConfig
from pipeline.self_critical import Reward, SelfCriticalStep
from pipeline.train_config import TrainConfig
from pipeline.training_data import Data, Features, features_function
from pipeline.validation import Validation
from pipeline.world import World
from shards.errors import DamageError, InputError

# Presses of Ctrl-C in so short a time are one: torchrun hands the terminal's on.
ONE_PRESS_SECONDS = 2.0
# Steps of a GPU are so short that asking the others at each would be felt.
GPU_STEPS_BETWEEN_QUESTIONS = 16


class Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C was pressed; everything up to now is saved."""


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How a training ended.

    ``loss`` is of the last step that this process logged, ``captions_per_second`` of its last steps, ``seconds_per_epoch`` of the epochs that it did
    whole; None where there was none.
    """

    steps: int
    loss: float | None
    val_loss: float | None
    best: Best | None
    seconds_per_epoch: float | None
    captions_per_second: float | None
    waited_share: float
    notes: tuple[str, ...]


def run_training(
    out: Path,
    config: RunConfig,
    data: Data,
    vocabulary: Vocabulary,
    device: torch.device,
    world: World,
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
    torch.manual_seed(settings.seed)
    captioner = Captioner(config.decoder).to(device)
    optimizer = adamw(captioner, settings)
    notes: list[str] = list(data.notes)
    position = Position(epoch=0, step_in_epoch=0, step=0)
    if holds_checkpoints(out):
        path, position, passed_over = find_checkpoint(out)
        notes += passed_over
        load_model(path, captioner)
        mean = AveragedModel(captioner, use_buffers=True)  # what captions, before what is trained takes its place
        load_training(path, captioner, optimizer)
        position = without_earlier_ends(position, settings)
    else:
        if start is not None:
            load_model(start, captioner)
        mean = AveragedModel(captioner, use_buffers=True)
    world.wait()  # nobody removes a checkpoint that another is reading
    features_of = features_function(data)
    encoded = Encoded(data.source.table, vocabulary, device)
    validation = None
    if data.val is not None:
        validation = Validation(
            data.val, vocabulary, features_of, data.val_pictures, images=settings.val_images, device=device, world=world, quiet=quiet
        )
    model = captioner if world.size == 1 else DistributedDataParallel(captioner, broadcast_buffers=False)
    per_epoch = steps_per_epoch(data.source.table, batch_size=settings.batch_size, captions_per_image=settings.captions_per_image)
    step_of: Callable[[CaptionBatch], Tensor]
    if settings.self_critical:
        table = data.source.table
        reward = Reward(table, vocabulary)
        step_of = SelfCriticalStep(captioner, model, features_of, settings.precision, world, table, reward, vocabulary, settings.samples)
    else:
        step_of = Step(captioner, model, features_of, settings, per_epoch, world)
    total = per_epoch * settings.epochs if max_steps is None else min(per_epoch * settings.epochs, max_steps)
    if position.step != position.epoch * per_epoch + position.step_in_epoch or position.step_in_epoch > per_epoch:
        raise DamageError(f"{out}: the newest checkpoint says epoch {position.epoch}, step {position.step}, which no training of it reaches.")
    log = MetricsLog(out, position, validated=position.step_in_epoch < per_epoch) if world.first else None
    loss = val_loss = None
    epoch_seconds: list[float] = []
    saved, saved_at, meter = position, time.monotonic(), Meter(world, rewarded=settings.self_critical)

    def speaker() -> Captioner:
        """What captions."""
        return cast("Captioner", mean.module) if position.averaged else captioner

    def save() -> None:
        nonlocal saved, saved_at
        check_finite(captioner, position)
        if world.first:
            save_checkpoint(out, captioner, optimizer, position, mean=speaker() if position.averaged else None, keep=settings.keep_checkpoints)
        saved, saved_at = position, time.monotonic()

    captioner.train()
    with (
        contextlib.closing(log) if log is not None else contextlib.nullcontext(),
        interruptible(world, device) as interrupted,
        Progress("Training", total=max(total - position.step, 0), unit="steps", quiet=quiet or not world.first) as progress,
    ):
        # An epoch that was stopped after its last step has still to be validated.
        while (
            position.epoch < settings.epochs
            and (position.step < total or position.step_in_epoch == per_epoch)
            and not exhausted(position, settings, per_epoch)
        ):
            began, whole = time.perf_counter(), position.step_in_epoch == 0
            batches = training_batches(
                data.source,
                encoded,
                seed=settings.seed,
                epoch=position.epoch,
                batch_size=settings.batch_size,
                captions_per_image=settings.captions_per_image,
                first_step=position.step_in_epoch,
                part=world.part,
            )
            with contextlib.closing(batches):
                while position.step_in_epoch < per_epoch and position.step < total:
                    asked = time.perf_counter()
                    batch = to_device(next(batches), device)
                    came = time.perf_counter()
                    lr = settings.lr_at(position.step, per_epoch)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    optimizer.zero_grad()
                    torch.manual_seed(step_seed(settings.seed, position.step, world.rank))
                    step_loss = step_of(batch)
                    if settings.clip_norm:
                        torch.nn.utils.clip_grad_norm_(captioner.parameters(), settings.clip_norm)
                    optimizer.step()
                    position = replace(position, step_in_epoch=position.step_in_epoch + 1, step=position.step + 1)
                    meter.add(step_loss, batch.batch_captions, waited=came - asked, seconds=time.perf_counter() - asked)
                    progress.advance(1, note=meter.note)
                    if position.step % settings.log_every == 0 or position.step == total:
                        line = meter.line(position, lr, per_epoch)
                        loss = line["loss"]
                        if log is not None:
                            log.write(line)
                    stop = interrupted(position.step)
                    if position.step_in_epoch == per_epoch and not stop:
                        break  # validated first: a checkpoint of this step is saved once
                    every = settings.checkpoint_every is not None and position.step % settings.checkpoint_every == 0
                    clock = 0 < settings.checkpoint_minutes * 60 <= time.monotonic() - saved_at
                    if stop or every or clock:
                        save()
                    if stop:
                        raise Interrupted(f"Stopped after step {position.step} of {total}; all of it is saved.")
            if position.step_in_epoch < per_epoch:
                break
            if whole:
                epoch_seconds.append(time.perf_counter() - began)
            check_finite(captioner, position)
            position = with_this_end(mean, captioner, position, settings)
            if validation is not None:
                found = validation.measure(speaker())
                val_loss = found.loss
                if log is not None:
                    log.validated(position, found)
                if found.cider is not None and (position.best is None or found.cider > position.best.cider):
                    position = replace(position, best=Best(step=position.step, cider=found.cider))
            position = replace(position, epoch=position.epoch + 1, step_in_epoch=0)
            best_now = position.best is not None and position.best.step == position.step
            every = settings.checkpoint_every is not None and position.step // settings.checkpoint_every > saved.step // settings.checkpoint_every
            if best_now or every:
                save()
        if position.step > saved.step or not holds_checkpoints(out):
            save()
    world.wait()  # a process that ended sooner would be missed
    return TrainSummary(
        steps=position.step,
        loss=loss,
        val_loss=val_loss,
        best=position.best,
        seconds_per_epoch=sorted(epoch_seconds)[len(epoch_seconds) // 2] if epoch_seconds else None,
        captions_per_second=meter.captions_per_second,
        waited_share=meter.waited_share,
        notes=tuple(notes),
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


def check_finite(captioner: Captioner, position: Position) -> None:
    """Refuse to keep or to score weights that are no numbers.

    Raises:
        InputError: Says where the last good ones are.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in captioner.parameters()):
        raise InputError(
            f"Weights became infinite or no numbers by step {position.step}: the training diverged. Checkpoints from before are kept; start again "
            "with a smaller --lr, or with --clip-norm."
        )


def exhausted(position: Position, settings: TrainConfig, per_epoch: int) -> bool:
    """Whether so many epochs have passed without better captions that the training's patience is at an end."""
    if settings.patience is None or position.best is None:
        return False
    return position.epoch - position.best.step // per_epoch >= settings.patience


@dataclass(frozen=True)
class Step:
    """Forward and backward of one batch: gradients of its mean cross-entropy per token, over all processes, in the parameters.

    Args:
        captioner: The model.
        model: What computes its loss: itself, or DistributedDataParallel around it.
        features_of: What turns a batch into features.
        settings: Of these ``accumulate``: how many pieces of the batch go through the decoder one after the other (the projection sees the
            whole batch at once, so that BatchNorm's statistics and all gradients stay the same; only the decoder's memory becomes smaller);
            ``precision``: ``bf16``: matrix products of the decoder in bfloat16 (weights, sums and the optimizer stay float32); and
            ``label_smoothing`` and ``own_words``.
        per_epoch: Steps of an epoch.
    """

    captioner: Captioner
    model: torch.nn.Module
    features_of: Features
    settings: TrainConfig
    per_epoch: int
    world: World

    def __call__(self, batch: CaptionBatch) -> Tensor:
        """Of the loss, in nats per token, the part of this process, float32 (); the parts of all processes add up to it."""
        images = self.captioner.projection(self.features_of(batch))
        # DistributedDataParallel takes the mean over processes, and a sum is wanted.
        weight = self.world.size / batch.batch_tokens
        own_words = self.settings.own_words_at(batch.epoch * self.per_epoch + batch.step, self.per_epoch)
        first, *others = self._pieces(batch)
        early, loss = images.detach().requires_grad_(), torch.zeros((), device=images.device)
        for piece in others:
            with self._unshared():
                part = self._loss(early, piece, own_words) * weight
                part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        part = self._loss(images, first, own_words) * weight
        torch.autograd.backward([part, images] if others else [part], [None, early.grad] if others else None)
        loss += part.detach()
        loss /= self.world.size
        return loss

    def _loss(self, images: Tensor, piece: tuple[Tensor, Tensor, Tensor], own_words: float) -> Tensor:
        with decoder_arithmetic(self.settings.precision, images.device):
            loss: Tensor = self.model(images, *piece, label_smoothing=self.settings.label_smoothing, own_words=own_words)
        return loss

    def _pieces(self, batch: CaptionBatch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Pieces of about the same number of tokens: every ``pieces``-th caption of those sorted by length."""
        count = max(1, min(self.settings.accumulate, len(batch.caption_lengths)))
        pieces = []
        for start in range(count):
            lengths = batch.caption_lengths[start::count]
            longest = int(lengths[0]) if len(lengths) else 0
            pieces.append((batch.unit_rows[start::count], batch.tokens[start::count, :longest], lengths))
        return pieces

    def _unshared(self) -> contextlib.AbstractContextManager[None]:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()


@contextmanager
def interruptible(world: World, device: torch.device) -> Iterator[Callable[[int], bool]]:
    """Yield a function that tells, at a step, whether Ctrl-C was pressed or the process told to end, in any process of the training.

    The step is finished first. A second Ctrl-C, two seconds later or more, ends at once.
    """
    pressed: float | None = None
    between = GPU_STEPS_BETWEEN_QUESTIONS if device.type == "cuda" and world.size > 1 else 1

    def remember(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        now = time.monotonic()
        if pressed is not None and now - pressed > (ONE_PRESS_SECONDS if world.size > 1 else 0):
            raise KeyboardInterrupt
        pressed = now if pressed is None else pressed

    def asked(step: int) -> bool:
        return step % between == 0 and world.total(float(pressed is not None))[0] > 0

    try:
        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us there answers Ctrl-C
        yield lambda _: False
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
