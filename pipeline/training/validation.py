"""The val split, looked at after each epoch: loss of its captions, CIDEr of generated ones, and some of these beside their pictures.

The processes of a training share the images; the first one scores. What does not change from epoch to epoch, the features, is computed
once and kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from model.captioner import Captioner
from model.decoding import greedy, sentence
from model.metrics import cider
from model.ptb import ptb_tokens
from model.vocabulary import Vocabulary
from pipeline.execution.progress import Progress
from pipeline.features.previews import PREVIEWS, spread_rows
from pipeline.loading.batches import CaptionBatch, EncodedCaptions, table_batches, to_device
from pipeline.loading.sources import Source
from pipeline.loading.training_data import FeatureExtractor, Pictures
from pipeline.training.distributed import ProcessGroup
from shards.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ShownCaption:
    """A val image with what was generated for it: its pixels, uint8 (height, width, 3), where they are at hand."""

    pixels: NDArray[np.uint8] | None
    caption: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """What a validation found; ``shown`` in the first process alone, ``cider`` None where there are no images."""

    loss: float
    cider: float | None
    shown: tuple[ShownCaption, ...]


class Validation:
    """Measures a captioner on up to ``images`` images of the val split, spread evenly over it.

    Args:
        source: The val split.
        features_of: What turns a batch into features.
        quiet: Show no progress while the features are computed.
        pictures: Gives the pixels of some images.
    """

    def __init__(
        self,
        source: Source,
        vocabulary: Vocabulary,
        features_of: FeatureExtractor,
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
        # As evaluate scores: the CIDEr of a training is that of its greedy captions there.
        self.references = [[ptb_tokens(text) for text in texts] for texts in source.table.reference_texts(self.rows)] if processes.is_main else []
        start, stop = processes.rank_slice.of(0, len(self.rows))
        self.batches: list[CaptionBatch] = []
        encoded = EncodedCaptions(source.table, vocabulary, device)
        with torch.no_grad(), Progress("Preparing val", total=stop - start, unit="images", quiet=quiet or not processes.is_main) as progress:
            for read in table_batches(source, encoded, self.rows[start:stop]):
                batch = to_device(read, device)
                self.batches.append(replace(batch, images=features_of(batch)))
                progress.advance(len(batch.images))

    @torch.no_grad()
    def measure(self, captioner: Captioner) -> ValidationResult:
        """Loss in nats per token, CIDEr of greedy captions, and a few captions to look at.

        Raises:
            InputError: The loss is not finite, in all processes alike.
        """
        captioner.eval()
        total = tokens = 0.0
        for batch in self.batches:
            images = captioner.projection(batch.images)
            total += float(captioner(images, batch.unit_rows, batch.tokens, batch.caption_lengths))
            tokens += batch.batch_tokens
        total, tokens = self.processes.sum(total, tokens)
        if not math.isfinite(total):
            raise InputError(f"The loss on the val split became {total}: the training diverged. Start again with a smaller --lr.")
        mine = [words for batch in self.batches for words in greedy(captioner, batch.images, self.vocabulary)]
        captioner.train()
        words = self.processes.gather(mine)
        if not words:
            return ValidationResult(loss=total / max(tokens, 1), cider=None, shown=())
        mine_alone = cider([ptb_tokens(sentence(caption)) for caption in words], self.references) if self.processes.is_main else 0.0
        (scored,) = self.processes.sum(mine_alone)  # all have to agree on which captions are the best, and when patience ends
        return ValidationResult(loss=total / max(tokens, 1), cider=scored, shown=tuple(self._shown(words)) if self.processes.is_main else ())

    def _shown(self, words: list[list[str]]) -> Iterator[ShownCaption]:
        rows = [row for row in spread_rows(self.table.images, PREVIEWS).tolist() if self.table.caption_counts[row]]
        first = np.cumsum(self.table.caption_counts) - self.table.caption_counts
        for row, place, pixels in zip(rows, np.searchsorted(self.rows, rows), self.pictures(rows), strict=True):
            yield ShownCaption(pixels=pixels, caption=sentence(words[place]), reference=self.table.texts[first[row]])
