"""The LSTM decoder (Vinyals et al., 2015, "Show and tell").

The image is the first input and predicts <start>; each word predicts the next one, and the last word predicts <end>, which is never fed.
"""

from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from model.decoder_config import DecoderConfig
from model.decoders.base import Decoder, DecoderState


@dataclass(frozen=True)
class LSTMState:
    """Projected images, float32 (rows, embedding_dim), and the LSTM's two states, float32 (layers, rows, hidden_dim)."""

    images: Tensor
    hidden: Tensor
    cell: Tensor

    def select(self, rows: Tensor) -> Self:
        """As :class:`~model.decoders.base.DecoderState` says."""
        return type(self)(self.images[rows], self.hidden[:, rows], self.cell[:, rows])


class LSTMDecoder(Decoder):
    """Embedding -> LSTM -> scores of the vocabulary."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.every_step = config.image_input == "every_step"
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_dim)
        inputs = config.embedding_dim * (2 if self.every_step else 1)
        between = config.output_dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(inputs, config.hidden_dim, config.layers, batch_first=True, dropout=between)
        self.input_dropout, self.output_dropout = nn.Dropout(config.input_dropout), nn.Dropout(config.output_dropout)
        tied, same = config.tie_weights, config.hidden_dim == config.embedding_dim
        self.to_embedding = nn.Linear(config.hidden_dim, config.embedding_dim) if tied and not same else nn.Identity()
        self.output = nn.Linear(config.embedding_dim if tied else config.hidden_dim, config.vocabulary_size)
        if tied:
            # nn.Embedding starts with variance 1, which would make scores as large as the square root of its size.
            nn.init.normal_(self.embedding.weight, std=config.embedding_dim**-0.5)
            self.output.weight = self.embedding.weight

    def forward(self, images: Tensor, tokens: Tensor, caption_lengths: Tensor) -> Tensor:
        """As :meth:`model.decoders.base.Decoder.forward`."""
        # (captions, longest, embedding_dim): the image takes the first position, the last token is never an input.
        inputs = torch.cat([images.unsqueeze(1), self.embedding(tokens[:, :-1])], dim=1)
        if self.every_step:
            # (captions, longest, 2 * embedding_dim)
            inputs = torch.cat([inputs, images.unsqueeze(1).expand_as(inputs)], dim=2)
        packed = pack_padded_sequence(self.input_dropout(inputs), caption_lengths, batch_first=True)
        hidden, _ = self.lstm(packed)
        scores: Tensor = self.output(self.to_embedding(self.output_dropout(hidden.data)))
        return scores

    def first_state(self, images: Tensor) -> LSTMState:
        """As :meth:`model.decoders.base.Decoder.first_state`."""
        _, (hidden, cell) = self.lstm(self._inputs(images, images))
        return LSTMState(images, hidden, cell)

    def decoding_step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, LSTMState]:
        """As :meth:`model.decoders.base.Decoder.decoding_step`."""
        state = cast("LSTMState", state)
        outputs, (hidden, cell) = self.lstm(self._inputs(self.embedding(words), state.images), (state.hidden, state.cell))
        return self.output(self.to_embedding(outputs.squeeze(1))), LSTMState(state.images, hidden, cell)

    def _inputs(self, inputs: Tensor, images: Tensor) -> Tensor:
        """Inputs of one step, (rows, 1, inputs), from projected images or embedded words, (rows, embedding_dim)."""
        return (torch.cat([inputs, images], dim=1) if self.every_step else inputs).unsqueeze(1)
