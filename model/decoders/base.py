"""What every decoder is to the rest: a loss to train on, and steps to decode with.

A caption of n words is the sequence [<start>, w1, ..., wn, <end>]. A decoder of one vector predicts every token of it, <start> from the image
alone; the others are given <start> and predict the rest. Captions of a batch are sorted by descending length and packed, so that only real
tokens reach the vocabulary.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from model.decoder_config import DecoderConfig


@dataclass(frozen=True)
class ProjectedImages:
    """What a decoder sees of a batch of images.

    Attributes:
        values: float32 (images, positions, embedding_dim); the values of padding do not matter.
        mask: bool (images, positions): which positions are real and not padding; None: all of them.
    """

    values: Tensor
    mask: Tensor | None = None


class DecoderState(Protocol):
    """What a decoder remembers between two steps, for a batch of hypotheses (rows)."""

    def select(self, rows: Tensor) -> Self:
        """The state of some rows, int64 (selected,), in this order; a row may be selected several times, or not at all."""
        ...


class Decoder(nn.Module, ABC):
    """Projected images and words -> scores of the vocabulary.

    Subclasses are built from a :class:`~model.decoder_config.DecoderConfig` alone.

    Attributes:
        pooled: Whether it sees one vector, the mean over an image's positions.
        predicts_start: Whether it predicts <start>, too.
    """

    pooled: ClassVar[bool] = False
    predicts_start: ClassVar[bool] = False

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, images: ProjectedImages) -> ProjectedImages:
        """What the decoder computes once for each image, before any caption; by default nothing."""
        return images

    @abstractmethod
    def forward(self, images: ProjectedImages, image_rows: Tensor, tokens: Tensor, caption_lengths: Tensor) -> Tensor:
        """Scores of every token that the decoder predicts, with teacher forcing.

        Args:
            images: The images of the batch, as :meth:`encode` returned them.
            image_rows: int64 (captions,): the image of each caption.
            tokens: int64 (captions, longest), [<start>, w1, ..., wn, <end>, <pad>, ...].
            caption_lengths: int64 (captions,) on the CPU: n + 2, in descending order.

        Returns:
            float (predicted tokens, vocabulary_size), in the order of :meth:`targets`.
        """

    @abstractmethod
    def first_state(self, images: ProjectedImages) -> DecoderState:
        """The state before the first word, one row for each image."""

    @abstractmethod
    def decoding_step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Scores of the next word, float (rows, vocabulary_size), after ``words``, int64 (rows,); and the state after them."""

    def attention_weights(self, state: DecoderState) -> Tensor | None:
        """Where the decoder looked in the step that led to ``state``: float (rows, positions), rows add up to 1; None if it sees one vector."""
        del state
        return None

    def targets(self, tokens: Tensor, caption_lengths: Tensor) -> Tensor:
        """The tokens that the decoder predicts, in the order of :func:`torch.nn.utils.rnn.pack_padded_sequence`.

        Args:
            tokens: (captions, longest), the tokens, or one value for each.
            caption_lengths: As for :meth:`forward`.

        Returns:
            (predicted tokens,).
        """
        return self._packed(tokens, caption_lengths).data

    def _packed(self, tokens: Tensor, caption_lengths: Tensor) -> PackedSequence:
        first = 0 if self.predicts_start else 1
        return pack_padded_sequence(tokens[:, first:], caption_lengths - first, batch_first=True)

    @torch.no_grad()
    def scheduled_sampling_inputs(
        self, images: ProjectedImages, image_rows: Tensor, tokens: Tensor, caption_lengths: Tensor, probability: float
    ) -> Tensor:
        """The tokens, of which each word is replaced with ``probability`` by one sampled from the decoder's own predictions.

        Scheduled sampling (Bengio et al., 2015, "Scheduled sampling for sequence prediction with recurrent neural networks") in one pass
        over all positions (Duckworth et al., 2019, "Parallel scheduled sampling"): each prediction follows the true words before it.

        Args:
            images, image_rows, tokens, caption_lengths: As for :meth:`forward`.

        Returns:
            int64 (captions, longest): inputs, not targets; <start> is never replaced.
        """
        packed = self._packed(tokens, caption_lengths)
        sampled = torch.multinomial(self(images, image_rows, tokens, caption_lengths).float().softmax(dim=1), 1).squeeze(1)
        chosen = torch.where(torch.rand(sampled.shape, device=sampled.device) < probability, sampled, packed.data)
        first = 0 if self.predicts_start else 1
        padded, _ = pad_packed_sequence(PackedSequence(chosen, packed.batch_sizes), batch_first=True, total_length=tokens.shape[1] - first)
        return torch.cat([tokens[:, :1], padded[:, 1 - first :]], dim=1)


def rows_of(values: Tensor, rows: Tensor) -> Tensor:
    """``values[rows]``, int64 (rows,), of which several may be the same, with gradients that are added in a fixed order.

    Indexing has a backward pass that, on a CPU, adds the gradients of equal rows in whatever order the threads come.
    """
    return functional.embedding(rows, values.flatten(1)).view(len(rows), *values.shape[1:])


class WordScores(nn.Module):
    """The output layer: hidden states -> scores of the vocabulary, with the weights of the word embedding if they are tied.

    Args:
        hidden_dim: The size of the hidden states. If weights are tied and it differs from the embedding's, a linear layer comes in between.
        embedding: The decoder's word embedding.
    """

    def __init__(self, config: DecoderConfig, hidden_dim: int, embedding: nn.Embedding) -> None:
        super().__init__()
        tied, same = config.tie_weights, hidden_dim == config.embedding_dim
        self.to_embedding = nn.Linear(hidden_dim, config.embedding_dim) if tied and not same else nn.Identity()
        self.output = nn.Linear(config.embedding_dim if tied else hidden_dim, config.vocabulary_size)
        if tied:
            # nn.Embedding starts with variance 1, which would make scores as large as the square root of its size.
            nn.init.normal_(embedding.weight, std=config.embedding_dim**-0.5)
            self.output.weight = embedding.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Float (rows, hidden_dim) -> float (rows, vocabulary_size)."""
        scores: Tensor = self.output(self.to_embedding(hidden))
        return scores
