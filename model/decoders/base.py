"""What every decoder is to the rest: a loss to train on, and steps to decode with.

A caption of n words is the sequence [<start>, w1, ..., wn, <end>]. A decoder scores every token of it, the first one from the image alone.
Captions of a batch are sorted by falling length and packed, so that only real tokens are computed.
"""

from abc import ABC, abstractmethod
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from model.decoder_config import DecoderConfig


class DecoderState(Protocol):
    """What a decoder remembers between two steps, for a batch of hypotheses (rows)."""

    def select(self, rows: Tensor) -> Self:
        """The state of some rows, int64 (selected,), in this order; a row may be selected several times, or not at all."""
        ...


class Decoder(nn.Module, ABC):
    """Projected images and words -> scores of the vocabulary.

    Subclasses are built from a :class:`~model.decoder_config.DecoderConfig` alone.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, images: Tensor, tokens: Tensor, caption_lengths: Tensor) -> Tensor:
        """Scores of every real token, with teacher forcing.

        Args:
            images: float32 (captions, embedding_dim), the projected image of each caption.
            tokens: int64 (captions, longest), [<start>, w1, ..., wn, <end>, <pad>, ...].
            caption_lengths: int64 (captions,) on the CPU: n + 2, in descending order.

        Returns:
            float (real tokens, vocabulary_size), in the order of :func:`torch.nn.utils.rnn.pack_padded_sequence`.
        """

    @abstractmethod
    def first_state(self, images: Tensor) -> DecoderState:
        """The state before the first word, from projected images, float32 (rows, embedding_dim)."""

    @abstractmethod
    def decoding_step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Scores of the next word, float (rows, vocabulary_size), after ``words``, int64 (rows,); and the state after them."""

    @torch.no_grad()
    def scheduled_sampling_inputs(self, images: Tensor, tokens: Tensor, caption_lengths: Tensor, probability: float) -> Tensor:
        """The tokens, of which each word is replaced with ``probability`` by one sampled from the decoder's own predictions.

        Scheduled sampling (Bengio et al., 2015, "Scheduled sampling for sequence prediction with recurrent neural networks") in one pass
        over all positions (Duckworth et al., 2019, "Parallel scheduled sampling"): each prediction follows the true words before it.

        Args:
            images, tokens, caption_lengths: As for :meth:`forward`.

        Returns:
            int64 (captions, longest): inputs, not targets; <start> is never replaced.
        """
        packed = pack_padded_sequence(tokens, caption_lengths, batch_first=True)
        sampled = torch.multinomial(self(images, tokens, caption_lengths).float().softmax(dim=1), 1).squeeze(1)
        chosen = torch.where(torch.rand(sampled.shape, device=sampled.device) < probability, sampled, packed.data)
        chosen[: len(caption_lengths)] = packed.data[: len(caption_lengths)]
        padded, _ = pad_packed_sequence(PackedSequence(chosen, packed.batch_sizes), batch_first=True, total_length=tokens.shape[1])
        return padded
