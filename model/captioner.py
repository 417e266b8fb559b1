"""The model that is trained: a projection of image features and a decoder, and their loss; and several such models as an ensemble."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.decoder_config import DECODERS, DecoderConfig
from model.decoders.base import Decoder, DecoderState, ProjectedImages
from model.feature_layout import mean_of_positions
from model.projection import Projection


class CaptionModel(Protocol):
    """What captions are decoded from: a single captioner or an ensemble."""

    training: bool

    def first_state(self, features: Tensor, mask: Tensor | None = None) -> DecoderState:
        """The state before the first word, from features, float (rows, positions, feature_dim), and the mask of their real positions."""
        ...

    def decoding_step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """Scores of the next word, float (rows, vocabulary_size), after ``words``, int64 (rows,); and the state after them."""
        ...


class Captioner(nn.Module):
    """Projection and decoder: all the weights that training changes.

    The decoder is the one that ``config.decoder`` names in :data:`model.decoder_config.DECODERS`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = Projection(config.feature_dim, config.embedding_dim, dropout=config.feature_dropout)
        self.decoder: Decoder = DECODERS[config.decoder](config)

    def project(self, features: Tensor, mask: Tensor | None = None) -> ProjectedImages:
        """What the decoder sees of some images, computed once for all their captions.

        Args:
            features: float (images, positions, feature_dim).
            mask: bool (images, positions): which positions are real and not padding; None: all of them.
        """
        if self.decoder.pooled:
            features, mask = mean_of_positions(features, mask), None
        return self.decoder.encode(ProjectedImages(self.projection(features, mask), mask))

    def predicted_tokens(self, tokens: int, captions: int) -> int:
        """How many tokens the loss counts, in ``captions`` captions of together ``tokens`` tokens with <start> and <end>."""
        return tokens if self.decoder.predicts_start else tokens - captions

    def forward(
        self,
        images: ProjectedImages,
        image_rows: Tensor,
        tokens: Tensor,
        caption_lengths: Tensor,
        *,
        label_smoothing: float = 0.0,
        scheduled_sampling: float = 0.0,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The sum of the cross-entropy over all tokens that the decoder predicts, in nats; 0 without captions.

        Args:
            images: From :meth:`project`.
            image_rows: int64 (captions,): the image that each caption belongs to.
            tokens, caption_lengths: As for :meth:`model.decoders.base.Decoder.forward`.
            label_smoothing: Share of the target that is spread over the vocabulary (Szegedy et al., 2016, "Rethinking the inception
                architecture").
            scheduled_sampling: Probability that an input word is sampled from the model; see
                :meth:`model.decoders.base.Decoder.scheduled_sampling_inputs`.
            weights: float32 (captions,): the weight of each caption's tokens, except <start>, which has weight 0; by default every token
                has weight 1.
        """
        if not len(caption_lengths):  # a rank's slice of a small batch may be empty: its gradients are zeros, not None
            return torch.stack([parameter.sum() for parameter in self.decoder.parameters()]).sum() * 0.0 + images.values.sum() * 0.0
        inputs = tokens
        if scheduled_sampling:
            inputs = self.decoder.scheduled_sampling_inputs(images, image_rows, tokens, caption_lengths, scheduled_sampling)
        logits = self.decoder(images, image_rows, inputs, caption_lengths)
        targets = self.decoder.targets(tokens, caption_lengths)
        if weights is None:
            return functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
        each = functional.cross_entropy(logits, targets, reduction="none")
        counted = self.decoder.targets(weights[:, None].expand(tokens.shape), caption_lengths)
        # In packed order the predictions of <start> come first
        return (each * counted)[len(caption_lengths) if self.decoder.predicts_start else 0 :].sum()

    def first_state(self, features: Tensor, mask: Tensor | None = None) -> DecoderState:
        """As :class:`CaptionModel` says."""
        return self.decoder.first_state(self.project(features, mask))

    def decoding_step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """As :class:`CaptionModel` says."""
        return self.decoder.decoding_step(words, state)


@dataclass(frozen=True)
class EnsembleState:
    """The state of each member."""

    members: Sequence[DecoderState]

    def select(self, rows: Tensor) -> Self:
        """As :class:`~model.decoders.base.DecoderState` says."""
        return type(self)([state.select(rows) for state in self.members])


class Ensemble(nn.Module):
    """Several captioners as one: the mean of their probabilities at each word, as logarithms.

    The members need the same features and vocabulary; their decoders and sizes may differ.
    """

    def __init__(self, captioners: Iterable[Captioner]) -> None:
        super().__init__()
        self.captioners = nn.ModuleList(captioners)

    def first_state(self, features: Tensor, mask: Tensor | None = None) -> EnsembleState:
        """As :class:`CaptionModel` says."""
        return EnsembleState([captioner.first_state(features, mask) for captioner in self._members()])

    def decoding_step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, EnsembleState]:
        """As :class:`CaptionModel` says."""
        steps = [one.decoding_step(words, own) for one, own in zip(self._members(), cast("EnsembleState", state).members, strict=True)]
        logs = [logits.float().log_softmax(dim=1) for logits, _ in steps]
        return torch.stack(logs).logsumexp(dim=0) - math.log(len(logs)), EnsembleState([after for _, after in steps])

    def _members(self) -> Iterable[Captioner]:
        return self.captioners  # type: ignore[return-value]
