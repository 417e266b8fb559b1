"""The captioner that is trained: projection and LSTM decoder, and the loss.

Input [image, <start>, w1, ..., wn], target [<start>, w1, ..., wn, <end>]: the image's step predicts <start>, and the last word
predicts <end>, which is itself never fed. Sequences are packed, so that only real tokens reach the LSTM and the vocabulary.
"""

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from model.decoder_config import DecoderConfig
from model.encoder import Projection

# What decoding carries from word to word: tensors whose second dimension is the row, (any, rows, any).
State = tuple[Tensor, ...]
STATE_PARTS = 3  # of one captioner


class Decoder(nn.Module):
    """Embedding -> LSTM -> scores of the vocabulary."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
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
            # The embedding's own start, variance 1, would make scores as large as the square root of its size.
            nn.init.normal_(self.embedding.weight, std=config.embedding_dim**-0.5)
            self.output.weight = self.embedding.weight

    def forward(self, images: Tensor, tokens: Tensor, caption_lengths: Tensor) -> Tensor:
        """Scores at every real place, teacher-forced.

        Args:
            images: float32 (captions, embedding_dim), the projected image of each caption.
            tokens: int64 (captions, longest), [<start>, w1, ..., wn, <end>, <pad>, ...].
            caption_lengths: int64 (captions,) on the CPU: n + 2, falling.

        Returns:
            float (real tokens, vocabulary_size), in packed order.
        """
        # (captions, longest, embedding_dim): the image takes the first place, the last token is never an input.
        inputs = torch.cat([images.unsqueeze(1), self.embedding(tokens[:, :-1])], dim=1)
        if self.every_step:
            # (captions, longest, 2 * embedding_dim)
            inputs = torch.cat([inputs, images.unsqueeze(1).expand_as(inputs)], dim=2)
        packed = pack_padded_sequence(self.input_dropout(inputs), caption_lengths, batch_first=True)
        hidden, _ = self.lstm(packed)
        scores: Tensor = self.output(self.to_embedding(self.output_dropout(hidden.data)))
        return scores

    @torch.no_grad()
    def scheduled_sampling_inputs(self, images: Tensor, tokens: Tensor, caption_lengths: Tensor, share: float) -> Tensor:
        """The tokens, of which about ``share`` of the words are replaced by words drawn from what the decoder expects there.

        Scheduled sampling (Bengio et al., 2015, "Scheduled sampling for sequence prediction with recurrent neural networks") in one pass for
        all places (Duckworth et al., 2019, "Parallel scheduled sampling"): what is drawn follows the true words before it.

        Args:
            images, tokens, caption_lengths: As for :meth:`forward`.

        Returns:
            int64 (captions, longest): inputs, no targets; <start> is never replaced.
        """
        packed = pack_padded_sequence(tokens, caption_lengths, batch_first=True)
        drawn = torch.multinomial(self(images, tokens, caption_lengths).float().softmax(dim=1), 1).squeeze(1)
        chosen = torch.where(torch.rand(drawn.shape, device=drawn.device) < share, drawn, packed.data)
        chosen[: len(caption_lengths)] = packed.data[: len(caption_lengths)]
        padded, _ = nn.utils.rnn.pad_packed_sequence(
            nn.utils.rnn.PackedSequence(chosen, packed.batch_sizes), batch_first=True, total_length=tokens.shape[1]
        )
        return padded

    def decoding_step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """One step for a batch.

        Args:
            inputs: float32 (rows, embedding_dim): projected images, or embedded words.
            state: What the step before returned; at the image's step the projected images alone, (1, rows, embedding_dim).

        Returns:
            (logits float32 (rows, vocabulary_size), state: projected images, and two of (layers, rows, hidden_dim)).
        """
        images, *memory = state
        if self.every_step:
            inputs = torch.cat([inputs, images[0]], dim=1)
        hidden, after = self.lstm(inputs.unsqueeze(1), tuple(memory) if memory else None)
        return self.output(self.to_embedding(hidden.squeeze(1))), (images, *after)


class Speaker(Protocol):
    """What captions are decoded from: one captioner, or several together."""

    training: bool

    def first_state(self, features: Tensor) -> State:
        """The state after the images, features float (rows, feature_dim)."""
        ...

    def decoding_step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """Scores of the next word, float (rows, vocabulary_size), after ``words``, int64 (rows,); and the state after them."""
        ...


class Captioner(nn.Module):
    """Projection and decoder: everything that training changes."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = Projection(config.feature_dim, config.embedding_dim, dropout=config.feature_dropout)
        self.decoder = Decoder(config)

    def forward(
        self,
        images: Tensor,
        image_rows: Tensor,
        tokens: Tensor,
        caption_lengths: Tensor,
        *,
        label_smoothing: float = 0.0,
        scheduled_sampling: float = 0.0,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The sum of the cross-entropy of all real tokens, in nats; with no caption at all, 0.

        Args:
            images: Projected images, float32 (images, embedding_dim).
            image_rows: int64 (captions,): the row of ``images`` that each caption belongs to.
            tokens, caption_lengths: As for :meth:`Decoder.forward`.
            label_smoothing: Share of the target that all words have in common (Szegedy et al., 2016, "Rethinking the inception architecture").
            scheduled_sampling: Share of the input words that the decoder draws itself; see :meth:`Decoder.scheduled_sampling_inputs`.
            weights: float32 (captions,): what each caption's tokens count, those of <start> nothing; by default every token counts 1.
        """
        if not len(caption_lengths):  # a process's share of a small batch: it takes part in what all do, with nothing
            return torch.stack([parameter.sum() for parameter in self.decoder.parameters()]).sum() * 0.0 + images.sum() * 0.0
        shown = images[image_rows]
        inputs = self.decoder.scheduled_sampling_inputs(shown, tokens, caption_lengths, scheduled_sampling) if scheduled_sampling else tokens
        logits = self.decoder(shown, inputs, caption_lengths)
        targets = pack_padded_sequence(tokens, caption_lengths, batch_first=True).data
        if weights is None:
            return functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
        each = functional.cross_entropy(logits, targets, reduction="none")
        # (real tokens,) in packed order, whose first places are those of <start>
        counted = pack_padded_sequence(weights[:, None].expand(tokens.shape), caption_lengths, batch_first=True).data
        return (each * counted)[len(caption_lengths) :].sum()

    def first_state(self, features: Tensor) -> State:
        """As :class:`Speaker` says."""
        images = self.projection(features.float())
        return self.decoder.decoding_step(images, (images.unsqueeze(0),))[1]

    def decoding_step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """As :class:`Speaker` says."""
        return self.decoder.decoding_step(self.decoder.embedding(words), state)


class Ensemble(nn.Module):
    """Several captioners that speak together: at each word the mean of their probabilities, as logarithms.

    Their features and vocabularies have to be the same; their sizes need not.
    """

    def __init__(self, captioners: Iterable[Captioner]) -> None:
        super().__init__()
        self.captioners = nn.ModuleList(captioners)

    def first_state(self, features: Tensor) -> State:
        """As :class:`Speaker` says."""
        return tuple(part for captioner in self._members() for part in captioner.first_state(features))

    def decoding_step(self, words: Tensor, state: State) -> tuple[Tensor, State]:
        """As :class:`Speaker` says."""
        logs: list[Tensor] = []
        after: list[Tensor] = []
        for place, captioner in enumerate(self._members()):
            logits, own = captioner.decoding_step(words, state[STATE_PARTS * place : STATE_PARTS * (place + 1)])
            logs.append(logits.float().log_softmax(dim=1))
            after.extend(own)
        return torch.stack(logs).logsumexp(dim=0) - math.log(len(logs)), tuple(after)

    def _members(self) -> Iterable[Captioner]:
        return self.captioners  # type: ignore[return-value]
