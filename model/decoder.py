"""The captioner that is trained: projection and LSTM decoder, and the tutorial's loss.

Input [image, <start>, w1, ..., wn], target [<start>, w1, ..., wn, <end>]: the image's step predicts <start>, and the last word
predicts <end>, which is itself never fed. Sequences are packed, so that only real tokens reach the LSTM and the vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from model.encoder import Projection

State = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a captioner; the defaults are the tutorial's."""

    feature_dim: int
    vocabulary_size: int
    embedding_dim: int = 256
    hidden_dim: int = 512
    layers: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")


class Decoder(nn.Module):
    """Embedding -> LSTM -> Linear over the vocabulary."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_dim)
        self.lstm = nn.LSTM(config.embedding_dim, config.hidden_dim, config.layers, batch_first=True)
        self.output = nn.Linear(config.hidden_dim, config.vocabulary_size)

    def forward(self, images: Tensor, tokens: Tensor, caption_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of every real target, teacher-forced.

        Args:
            images: float32 (captions, embedding_dim), the projected image of each caption.
            tokens: int64 (captions, longest), [<start>, w1, ..., wn, <end>, <pad>, ...].
            caption_lengths: int64 (captions,) on the CPU: n + 2, falling.

        Returns:
            (logits, targets): float (real tokens, vocabulary_size) and int64 (real tokens,), in packed order.
        """
        # (captions, longest, embedding_dim): the image takes the first place, the last token is never an input.
        inputs = torch.cat([images.unsqueeze(1), self.embedding(tokens[:, :-1])], dim=1)
        packed = pack_padded_sequence(inputs, caption_lengths, batch_first=True)
        targets = pack_padded_sequence(tokens, caption_lengths, batch_first=True)
        hidden, _ = self.lstm(packed)
        return self.output(hidden.data), targets.data

    def decoding_step(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        """One step for a batch.

        Args:
            inputs: float32 (rows, embedding_dim): projected images, or embedded words.
            state: What the step before returned; None at the image.

        Returns:
            (logits float32 (rows, vocabulary_size), state of two (layers, rows, hidden_dim)).
        """
        hidden, state = self.lstm(inputs.unsqueeze(1), state)
        return self.output(hidden.squeeze(1)), state


class Captioner(nn.Module):
    """Projection and decoder: everything that training changes."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = Projection(config.feature_dim, config.embedding_dim)
        self.decoder = Decoder(config)

    def forward(self, images: Tensor, image_rows: Tensor, tokens: Tensor, caption_lengths: Tensor) -> Tensor:
        """The sum of the cross-entropy of all real tokens, in nats; with no caption at all, 0.

        Args:
            images: Projected images, float32 (images, embedding_dim).
            image_rows: int64 (captions,): the row of ``images`` that each caption belongs to.
            tokens, caption_lengths: As for :meth:`Decoder.forward`.
        """
        if not len(caption_lengths):  # a process's share of a small batch: it takes part in what all do, with nothing
            return torch.stack([parameter.sum() for parameter in self.decoder.parameters()]).sum() * 0.0 + images.sum() * 0.0
        logits, targets = self.decoder(images[image_rows], tokens, caption_lengths)
        return functional.cross_entropy(logits, targets, reduction="sum")
