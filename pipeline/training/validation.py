"""Validation after each epoch: loss of the val captions, CIDEr of generated captions, and a few examples with their images.

The processes of a training divide the images among them; the main process computes the scores. The features of raw images, which do not change
from epoch to epoch, are computed once and kept; cached features are read again, since those of a grid may not fit into memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from model.captioner import Captioner
from model.decoding import greedy
from model.metrics import cider
from model.vocabulary import Vocabulary
from pipeline.captions.languages import language_rules
from pipeline.execution.progress import Progress
from pipeline.features.previews import PREVIEWS, spread_rows
from pipeline.loading.batches import CaptionBatch, EncodedCaptions, table_batches, to_device
from pipeline.loading.sources import Source
from pipeline.loading.training_data import FeatureExtractor, Pictures
from pipeline.training.distributed import ProcessGroup
from shards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ExampleCaption:
    """A val image with its generated caption and one reference; ``pixels``, uint8 (height, width, 3), where they are available."""

    pixels: NDArray[np.uint8] | None
    caption: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """The scores of one validation.

    Attributes:
        loss: Nats per token.
        cider: CIDEr of the greedy captions, on a scale of 0 to 10; None if the split has no captioned images.
        examples: In the main process only.
    """

    loss: float
    cider: float | None
    examples: tuple[ExampleCaption, ...]


class Validator:
    """Validates a captioner on images of the val split, spread evenly over it.

    Args:
        source: The val split.
        extract_features: Computes a batch's features.
        pictures: Returns the pixels of the example images.
        images: The maximum number of images; the example images are added to them.
        quiet: Show no progress while the features are computed.
    """

    def __init__(
        self,
        source: Source,
        vocabulary: Vocabulary,
        extract_features: FeatureExtractor,
        pictures: Pictures,
        *,
        images: int,
        device: torch.device,
        processes: ProcessGroup,
        quiet: bool = True,
    ) -> None:
        self.table, self.vocabulary, self.pictures, self.processes = source.table, vocabulary, pictures, processes
        captioned = source.table.caption_counts > 0
        chosen = np.union1d(spread_rows(source.table.images, images), spread_rows(source.table.images, PREVIEWS))
        self.rows = chosen[captioned[chosen]]
        # The same references as in `evaluate`, which finds the same CIDEr for greedy captions.
        references = source.table.reference_texts(self.rows) if processes.is_main_process else []
        self.language = language_rules(vocabulary.language)
        self.references = [[self.language.scored(text) for text in texts] for texts in references]
        self.source, self.device, self.encoded = source, device, EncodedCaptions(source.table, vocabulary, device)
        start, stop = processes.rank_slice.of(0, len(self.rows))
        self.own_rows = self.rows[start:stop]
        self.kept: list[CaptionBatch] | None = None
        if source.feature_dim is None:
            self.kept = []
            quiet = quiet or not processes.is_main_process
            with torch.no_grad(), Progress("Preparing val", total=stop - start, unit="images", quiet=quiet) as progress:
                for batch in self._read():
                    self.kept.append(replace(batch, images=extract_features(batch)))
                    progress.advance(len(batch.images))

    def _read(self) -> Iterator[CaptionBatch]:
        """The images of this process with their captions, on the device."""
        return (to_device(batch, self.device) for batch in table_batches(self.source, self.encoded, self.own_rows))

    @torch.no_grad()
    def validate(self, captioner: Captioner) -> ValidationResult:
        """Loss in nats per token, CIDEr of greedy captions, and a few examples. All processes return the same scores.

        Raises:
            InputError: The loss is NaN or inf, in all processes alike.
        """
        captioner.eval()
        total, tokens, own_captions = 0.0, 0, list[list[str]]()
        for batch in self.kept if self.kept is not None else self._read():
            images = captioner.project(batch.images, batch.mask)
            total += float(captioner(images, batch.unit_rows, batch.tokens, batch.caption_lengths))
            tokens += captioner.predicted_tokens(batch.batch_tokens, batch.batch_captions)
            if math.isfinite(total):  # a diverged model cannot caption; all processes learn of it below
                own_captions += greedy(captioner, batch.images, self.vocabulary, mask=batch.mask)
        captioner.train()
        loss = self._mean_loss(total, tokens)
        captions = self.processes.all_gather(own_captions)
        if not captions:
            return ValidationResult(loss=loss, cider=None, examples=())
        is_main = self.processes.is_main_process
        main_score = cider([self.language.scored(self.language.join(words)) for words in captions], self.references).corpus if is_main else 0.0
        (score,) = self.processes.sum(main_score)  # all processes need it: they have to agree on the best epoch and on when patience runs out
        return ValidationResult(loss=loss, cider=score, examples=tuple(self._examples(captions)) if is_main else ())

    def _mean_loss(self, own_total: float, own_tokens: int) -> float:
        """The mean loss per token over all processes, from this process's sums."""
        total, tokens = self.processes.sum(own_total, float(own_tokens))
        if not math.isfinite(total):
            raise InputError(f"The loss on the val split is {total}: the training diverged. Start again with a smaller `lr`.")
        return total / max(tokens, 1)

    def _examples(self, captions: list[list[str]]) -> Iterator[ExampleCaption]:
        rows = [row for row in spread_rows(self.table.images, PREVIEWS).tolist() if self.table.caption_counts[row]]
        first_captions = np.cumsum(self.table.caption_counts) - self.table.caption_counts
        for row, index, pixels in zip(rows, np.searchsorted(self.rows, rows), self.pictures(rows), strict=True):
            yield ExampleCaption(pixels=pixels, caption=self.language.join(captions[index]), reference=self.table.texts[first_captions[row]])
