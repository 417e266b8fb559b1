"""The top-down attention decoder (Anderson et al., 2018, "Bottom-up and top-down attention for image captioning and visual question answering").

For each word an attention LSTM decides where in the image to look, and a language LSTM predicts the next word from what it sees there
(section 3.2). Attention is additive: a position's weight is the softmax of w . tanh(key + query).

Trade-off: the recurrence runs word by word in Python, over the captions that are still long enough. All that does not depend on it, the
keys of the positions and the products of the words and of the mean position, is computed for all words at once.
"""

from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor, nn

from model.decoder_config import DecoderConfig
from model.decoders.base import Decoder, DecoderState, ProjectedImages, WordScores, rows_of
from model.feature_layout import mean_of_positions


@dataclass(frozen=True)
class Memory:
    """What the decoder knows of its images.

    Attributes:
        values: float (images, positions, embedding_dim).
        keys: float (images, positions, hidden_dim): the image's half of the attention.
        mean: float (images, 4 * hidden_dim): the mean position, multiplied by its weights of the attention LSTM.
        mask: bool (images, positions), or None.
    """

    values: Tensor
    keys: Tensor
    mean: Tensor
    mask: Tensor | None

    def of(self, rows: Tensor) -> "Memory":
        """The memory of some images, int64 (rows,), of which several may be the same."""
        mask = None if self.mask is None else self.mask[rows]
        return Memory(rows_of(self.values, rows), rows_of(self.keys, rows), rows_of(self.mean, rows), mask)

    def first(self, rows: int) -> "Memory":
        """The memory of the first rows."""
        return Memory(self.values[:rows], self.keys[:rows], self.mean[:rows], None if self.mask is None else self.mask[:rows])


@dataclass(frozen=True)
class Recurrence:
    """The states of both LSTMs, float (rows, hidden_dim) each, and the attention of the last step, float (rows, positions)."""

    attention_hidden: Tensor
    attention_cell: Tensor
    language_hidden: Tensor
    language_cell: Tensor
    weights: Tensor | None = None

    def select(self, rows: Tensor) -> Self:
        """The states of some rows."""
        states = [state[rows] for state in (self.attention_hidden, self.attention_cell, self.language_hidden, self.language_cell)]
        return type(self)(states[0], states[1], states[2], states[3], None if self.weights is None else self.weights[rows])

    def first(self, rows: int) -> Self:
        """The states of the first rows."""
        states = (self.attention_hidden, self.attention_cell, self.language_hidden, self.language_cell)
        return type(self)(*(state[:rows] for state in states))


@dataclass(frozen=True)
class AttentionState:
    """The images' memory, which all hypotheses share; the image of each row, int64 (rows,); and the recurrence of each row."""

    memory: Memory
    images: Tensor
    recurrence: Recurrence

    def select(self, rows: Tensor) -> Self:
        """As :class:`~model.decoders.base.DecoderState` says."""
        return replace(self, images=self.images[rows], recurrence=self.recurrence.select(rows))


class AttentionDecoder(Decoder):
    """Embedding -> attention LSTM -> attention over the positions -> language LSTM -> scores of the vocabulary."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        embedding, hidden = config.embedding_dim, config.hidden_dim
        self.embedding = nn.Embedding(config.vocabulary_size, embedding)
        self.input_dropout, self.output_dropout = nn.Dropout(config.input_dropout), nn.Dropout(config.output_dropout)
        # The input of the attention LSTM is [language hidden state, mean position, word]: each part has its own weights here.
        self.word_gates = nn.Linear(embedding, 4 * hidden)
        self.mean_gates = nn.Linear(embedding, 4 * hidden, bias=False)
        self.attention_gates = nn.Linear(2 * hidden, 4 * hidden, bias=False)
        self.language_gates = nn.Linear(embedding + 2 * hidden, 4 * hidden)
        self.key, self.query, self.weight = nn.Linear(embedding, hidden), nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, 1, bias=False)
        for gates in (self.word_gates, self.mean_gates, self.attention_gates, self.language_gates):
            for parameter in gates.parameters():  # as torch.nn.LSTM starts
                nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)
        self.word_scores = WordScores(config, hidden, self.embedding)

    def forward(self, images: ProjectedImages, image_rows: Tensor, tokens: Tensor, caption_lengths: Tensor) -> Tensor:
        """As :meth:`model.decoders.base.Decoder.forward`."""
        memory = self._memory(images).of(image_rows)
        # (captions, longest - 1, 4 * hidden_dim)
        words = self.word_gates(self.input_dropout(self.embedding(tokens[:, :-1])))
        # How many captions have a token at each position; the longest come first.
        counts = self._packed(tokens, caption_lengths).batch_sizes.tolist()
        state, outputs = self._start(memory), []
        for position, count in enumerate(counts):
            if count < len(state.language_hidden):
                memory, state = memory.first(count), state.first(count)
            state = self._step(words[:count, position], memory, state)
            outputs.append(state.language_hidden)
        scores: Tensor = self.word_scores(self.output_dropout(torch.cat(outputs)))
        return scores

    def first_state(self, images: ProjectedImages) -> AttentionState:
        """As :meth:`model.decoders.base.Decoder.first_state`."""
        memory = self._memory(images)
        return AttentionState(memory, torch.arange(len(images.values), device=images.values.device), self._start(memory))

    def decoding_step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, AttentionState]:
        """As :meth:`model.decoders.base.Decoder.decoding_step`."""
        state = cast("AttentionState", state)
        after = self._step(self.word_gates(self.embedding(words)), state.memory.of(state.images), state.recurrence)
        return self.word_scores(after.language_hidden), replace(state, recurrence=after)

    def attention_weights(self, state: DecoderState) -> Tensor | None:
        """As :meth:`model.decoders.base.Decoder.attention_weights`."""
        return cast("AttentionState", state).recurrence.weights

    def _memory(self, images: ProjectedImages) -> Memory:
        mean, keys = mean_of_positions(images.values, images.mask).squeeze(1), self.key(images.values)
        # Converted once, and not at each word by autocast
        return Memory(images.values.to(keys.dtype), keys, self.mean_gates(mean), images.mask)

    def _start(self, memory: Memory) -> Recurrence:
        zeros = torch.zeros((len(memory.values), self.config.hidden_dim), device=memory.values.device)
        return Recurrence(zeros, zeros, zeros, zeros)

    def _step(self, word: Tensor, memory: Memory, state: Recurrence) -> Recurrence:
        """One word further: ``word`` is float (rows, 4 * hidden_dim), its product with the attention LSTM's weights."""
        recurrent = self.attention_gates(torch.cat([state.language_hidden, state.attention_hidden], dim=1))
        attention_hidden, attention_cell = _lstm(word + memory.mean + recurrent, state.attention_cell)
        # (rows, positions, hidden_dim) -> (rows, positions)
        logits = self.weight(torch.tanh(memory.keys + self.query(attention_hidden).unsqueeze(1))).squeeze(2).float()
        if memory.mask is not None:
            logits = logits.masked_fill(~memory.mask, -torch.inf)
        weights = logits.softmax(dim=1)
        # (rows, 1, positions) x (rows, positions, embedding_dim)
        seen = torch.bmm(weights.unsqueeze(1).to(memory.values.dtype), memory.values).squeeze(1)
        gates = self.language_gates(torch.cat([seen, attention_hidden, state.language_hidden], dim=1))
        language_hidden, language_cell = _lstm(gates, state.language_cell)
        return Recurrence(attention_hidden, attention_cell, language_hidden, language_cell, weights)


def _lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden and the cell state of an LSTM (Hochreiter and Schmidhuber, 1997), float32 (rows, hidden_dim), after gates and a cell state."""
    entering, forgetting, candidate, leaving = gates.float().chunk(4, dim=1)
    cell = forgetting.sigmoid() * cell + entering.sigmoid() * candidate.tanh()
    return leaving.sigmoid() * cell.tanh(), cell
