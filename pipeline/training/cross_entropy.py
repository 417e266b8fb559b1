"""A training step for the captions' own words: gradients of the cross-entropy, piece after piece where memory is short."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from model.captioner import Captioner
from pipeline.backbone.precision import decoder_autocast
from pipeline.loading.batches import CaptionBatch
from pipeline.loading.training_data import FeatureExtractor
from pipeline.runs.train_config import TrainConfig
from pipeline.training.distributed import ProcessGroup


@dataclass(frozen=True)
class CrossEntropyStep:
    """Forward and backward of one batch: gradients of its mean cross-entropy per token, over all processes, in the parameters.

    Args:
        captioner: The model.
        model: What computes its loss: itself, or DistributedDataParallel around it.
        features_of: What turns a batch into features.
        settings: Of these ``accumulate``: how many pieces of the batch go through the decoder one after the other (the projection sees the
            whole batch at once, so that BatchNorm's statistics and all gradients stay the same; only the decoder's memory becomes smaller);
            ``precision``: ``bf16``: matrix products of the decoder in bfloat16 (weights, sums and the optimizer stay float32); and
            ``label_smoothing`` and ``scheduled_sampling``.
        per_epoch: Steps of an epoch.
    """

    captioner: Captioner
    model: torch.nn.Module
    features_of: FeatureExtractor
    settings: TrainConfig
    per_epoch: int
    processes: ProcessGroup

    def __call__(self, batch: CaptionBatch) -> Tensor:
        """Of the loss, in nats per token, the part of this process, float32 (); the parts of all processes add up to it."""
        images = self.captioner.projection(self.features_of(batch))
        # DistributedDataParallel takes the mean over processes, and a sum is wanted.
        weight = self.processes.size / batch.batch_tokens
        scheduled_sampling = self.settings.scheduled_sampling_at(batch.epoch * self.per_epoch + batch.step, self.per_epoch)
        first, *others = self._pieces(batch)
        early, loss = images.detach().requires_grad_(), torch.zeros((), device=images.device)
        for piece in others:
            with self._unshared():
                part = self._loss(early, piece, scheduled_sampling) * weight
                part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        part = self._loss(images, first, scheduled_sampling) * weight
        torch.autograd.backward([part, images] if others else [part], [None, early.grad] if others else None)
        loss += part.detach()
        loss /= self.processes.size
        return loss

    def _loss(self, images: Tensor, piece: tuple[Tensor, Tensor, Tensor], scheduled_sampling: float) -> Tensor:
        with decoder_autocast(self.settings.precision, images.device):
            loss: Tensor = self.model(images, *piece, label_smoothing=self.settings.label_smoothing, scheduled_sampling=scheduled_sampling)
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
