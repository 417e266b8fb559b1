"""The gradients of the cross-entropy of a batch's captions, accumulated over chunks of the batch to save memory."""

import contextlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from model.captioner import Captioner
from model.decoders.base import ProjectedImages
from pipeline.backbone.precision import decoder_autocast
from pipeline.loading.batches import CaptionBatch
from pipeline.loading.training_data import FeatureExtractor
from pipeline.runs.train_config import TrainConfig
from pipeline.training.distributed import ProcessGroup


@dataclass(frozen=True)
class CrossEntropyStep:
    """Forward and backward pass of one batch: the gradients of its mean cross-entropy per token, over all processes.

    Args:
        captioner: The captioner that is trained.
        model: The module that computes its loss: the captioner, or DistributedDataParallel around it.
        extract_features: Computes a batch's features.
        settings: The settings ``label_smoothing``, ``scheduled_sampling`` and
            ``accumulate``: the number of chunks that go through the decoder one after the other. The projection gets the whole batch at once,
            so that BatchNorm's statistics and all gradients stay the same; only the decoder's memory shrinks.
            ``precision``: ``bf16`` computes the decoder's matrix products in bfloat16; weights, sums and the optimizer stay in float32.
    """

    captioner: Captioner
    model: torch.nn.Module
    extract_features: FeatureExtractor
    settings: TrainConfig
    steps_per_epoch: int
    processes: ProcessGroup

    def __call__(self, batch: CaptionBatch) -> Tensor:
        """Compute the gradients; return this process's part of the loss in nats per token, float32 (). The parts of all processes add up to it."""
        features = self.extract_features(batch)
        with decoder_autocast(self.settings.precision, features.device):
            images = self.captioner.project(features, batch.mask)
        # DistributedDataParallel averages gradients over the processes; the sum is needed here.
        weight = self.processes.world_size / self.captioner.predicted_tokens(batch.batch_tokens, batch.batch_captions)
        scheduled_sampling = self.settings.scheduled_sampling_at(batch.epoch * self.steps_per_epoch + batch.step, self.steps_per_epoch)
        # The first chunk goes last: its backward pass continues into the projection, with the gradients of all chunks.
        last_chunk, *earlier_chunks = self._chunks(batch)
        detached = replace(images, values=images.values.detach().requires_grad_())
        loss = torch.zeros((), device=images.values.device)
        for chunk in earlier_chunks:
            with self._without_gradient_sync():
                chunk_loss = self._loss(detached, chunk, scheduled_sampling) * weight
                chunk_loss.backward()  # type: ignore[no-untyped-call]
            loss += chunk_loss.detach()
        chunk_loss = self._loss(images, last_chunk, scheduled_sampling) * weight
        if earlier_chunks:
            torch.autograd.backward([chunk_loss, images.values], [None, detached.values.grad])
        else:
            torch.autograd.backward([chunk_loss])
        loss += chunk_loss.detach()
        loss /= self.processes.world_size
        return loss

    def _loss(self, images: ProjectedImages, chunk: tuple[Tensor, Tensor, Tensor], scheduled_sampling: float) -> Tensor:
        with decoder_autocast(self.settings.precision, images.values.device):
            loss: Tensor = self.model(images, *chunk, label_smoothing=self.settings.label_smoothing, scheduled_sampling=scheduled_sampling)
        return loss

    def _chunks(self, batch: CaptionBatch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(unit_rows, tokens, caption_lengths) of each chunk: every n-th caption, sorted by length, so that chunks have similar numbers of tokens."""
        count = max(1, min(self.settings.accumulate, len(batch.caption_lengths)))
        chunks = []
        for start in range(count):
            lengths = batch.caption_lengths[start::count]
            longest = int(lengths[0]) if len(lengths) else 0
            chunks.append((batch.unit_rows[start::count], batch.tokens[start::count, :longest], lengths))
        return chunks

    def _without_gradient_sync(self) -> contextlib.AbstractContextManager[None]:
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else contextlib.nullcontext()
