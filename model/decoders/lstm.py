"""The LSTM decoder (Vinyals et al., 2015, "Show and tell").

The image is the first input and predicts <start>; each word predicts the next one, and the last word predicts <end>, which is never fed.
"""

from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from model.decoder_config import DecoderConfig
from model.decoders.base import Decoder, DecoderState, ProjectedImages, WordScores, rows_of


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

    pooled: ClassVar[bool] = True
    predicts_start: ClassVar[bool] = True

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        self.every_step = config.image_input == "every_step"
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_dim)
        inputs = config.embedding_dim * (2 if self.every_step else 1)
        between = config.output_dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(inputs, config.hidden_dim, config.layers, batch_first=True, dropout=between)
        self.input_dropout, self.output_dropout = nn.Dropout(config.input_dropout), nn.Dropout(config.output_dropout)
        self.word_scores = WordScores(config, config.hidden_dim, self.embedding)

    def forward(self, images: ProjectedImages, image_rows: Tensor, tokens: Tensor, caption_lengths: Tensor) -> Tensor:
        """As :meth:`model.decoders.base.Decoder.forward`."""
        shown = rows_of(images.values.squeeze(1), image_rows)
        # (captions, longest, embedding_dim): the image takes the first position, the last token is never an input.
        inputs = torch.cat([shown.unsqueeze(1), self.embedding(tokens[:, :-1])], dim=1)
        if self.every_step:
            # (captions, longest, 2 * embedding_dim)
            inputs = torch.cat([inputs, shown.unsqueeze(1).expand_as(inputs)], dim=2)
        packed = pack_padded_sequence(self.input_dropout(inputs), caption_lengths, batch_first=True)
        hidden, _ = self.lstm(packed)
        scores: Tensor = self.word_scores(self.output_dropout(hidden.data))
        return scores

    def first_state(self, images: ProjectedImages) -> LSTMState:
        """As :meth:`model.decoders.base.Decoder.first_state`."""
        shown = images.values.squeeze(1)
        _, (hidden, cell) = self.lstm(self._inputs(shown, shown))
        return LSTMState(shown, hidden, cell)

    def decoding_step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, LSTMState]:
        """As :meth:`model.decoders.base.Decoder.decoding_step`."""
        state = cast("LSTMState", state)
        outputs, (hidden, cell) = self.lstm(self._inputs(self.embedding(words), state.images), (state.hidden, state.cell))
        return self.word_scores(outputs.squeeze(1)), LSTMState(state.images, hidden, cell)

    def _inputs(self, inputs: Tensor, images: Tensor) -> Tensor:
        """Inputs of one step, (rows, 1, inputs), from projected images or embedded words, (rows, embedding_dim)."""
        return (torch.cat([inputs, images], dim=1) if self.every_step else inputs).unsqueeze(1)
