"""The transformer decoder: an encoder over an image's positions, and a causal decoder that looks at them.

Vaswani et al., 2017, "Attention is all you need", for captions as in Sharma et al., 2018, "Conceptual captions". Layers are pre-norm (Xiong et
al., 2020, "On layer normalization in the transformer architecture"), which trains with little warmup.

An image's keys and values are computed once and shared by all its captions and beams: queries are gathered by image, so that the memory is
read once for all of them. While decoding, the keys and values of the words so far are kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from model.decoder_config import DecoderConfig
from model.decoders.base import Decoder, DecoderState, ProjectedImages, WordScores

KeysValues = tuple[Tensor, Tensor]


class MultiHead(nn.Module):
    """Multi-head attention, with the products of keys and values apart from those of queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.keys_values, self.output = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def memory(self, values: Tensor) -> KeysValues:
        """Keys and values, each float (batch, heads, positions, width of a head), of float (batch, positions, width)."""
        keys, values = self.keys_values(values).chunk(2, dim=2)
        return self._by_head(keys), self._by_head(values)

    def forward(self, inputs: Tensor, memory: KeysValues, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attend from each position of ``inputs``, float (batch, positions, width), to a memory of the same batch.

        Args:
            mask: bool, broadcast to (batch, heads, positions of inputs, positions of memory): where to look.
            causal: Each position looks at itself and those before it.

        Returns:
            float (batch, positions, width).
        """
        queries = self._by_head(self.queries(inputs))
        seen = functional.scaled_dot_product_attention(queries, *memory, attn_mask=mask, is_causal=causal)
        output: Tensor = self.output(seen.transpose(1, 2).flatten(2))
        return output

    def weights(self, inputs: Tensor, memory: KeysValues, mask: Tensor | None) -> Tensor:
        """The mean of the heads' attention weights, float (batch, positions of inputs, positions of memory); arguments as for :meth:`forward`."""
        queries, keys = self._by_head(self.queries(inputs)).float(), memory[0].float()
        logits = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
        return (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(dim=3).mean(dim=1)

    def _by_head(self, values: Tensor) -> Tensor:
        """(batch, positions, width) -> (batch, heads, positions, width of a head)."""
        return values.view(*values.shape[:2], self.heads, values.shape[2] // self.heads).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Linear -> ReLU -> Linear, at each position."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width))


class EncoderLayer(nn.Module):
    """Self-attention over the positions of an image, and a feed-forward layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width = config.embedding_dim
        self.attention, self.feed_forward = MultiHead(width, config.heads), FeedForward(width, config.hidden_dim, config.output_dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(config.output_dropout)

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Float (images, positions, width) -> the same; ``mask``: bool (images, 1, 1, positions)."""
        inputs = self.norms[0](values)
        values = values + self.dropout(self.attention(inputs, self.attention.memory(inputs), mask=mask))
        result: Tensor = values + self.dropout(self.feed_forward(self.norms[1](values)))
        return result


class DecoderLayer(nn.Module):
    """Causal self-attention over the words, attention over the positions of the image, and a feed-forward layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        width = config.embedding_dim
        self.words, self.image = MultiHead(width, config.heads), MultiHead(width, config.heads)
        self.feed_forward = FeedForward(width, config.hidden_dim, config.output_dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(config.output_dropout)

    def forward(
        self, values: Tensor, past: KeysValues | None, image: KeysValues, mask: Tensor | None, owners: "Owners"
    ) -> tuple[Tensor, KeysValues, Tensor]:
        """One layer further.

        Args:
            values: Words of captions, float (captions, words, width).
            past: Keys and values of earlier words, which all words see; None: there are none, and a word sees those before it.
            image: Keys and values of each image.
            mask: bool (images, 1, 1, positions), or None.
            owners: The image of each caption.

        Returns:
            float (captions, words, width); the keys and values of all words so far; and the input of the attention over the image.
        """
        inputs = self.norms[0](values)
        now = self.words.memory(inputs)
        if past is not None:
            now = (torch.cat([past[0], now[0]], dim=2), torch.cat([past[1], now[1]], dim=2))
        values = values + self.dropout(self.words(inputs, now, causal=past is None))
        looking = self.norms[1](values)
        seen = owners.spread(self.image(owners.gathered(looking), image, mask=mask), values.shape[1])
        values = values + self.dropout(seen)
        return values + self.dropout(self.feed_forward(self.norms[2](values))), now, looking


@dataclass(frozen=True)
class Owners:
    """The image of each caption, and a place for each caption among those of its image.

    Attributes:
        images: The number of images.
        places: int64 (captions,): image * most + the caption's number among those of its image.
        most: The largest number of captions of an image.
    """

    images: int
    places: Tensor
    most: int

    @classmethod
    def of(cls, image_rows: Tensor, images: int) -> Self:
        """From the image of each caption, int64 (captions,)."""
        order = image_rows.argsort(stable=True)
        ordered = image_rows[order]
        numbers = torch.arange(len(ordered), device=ordered.device) - torch.searchsorted(ordered, ordered)
        most = int(numbers.max()) + 1 if len(numbers) else 1
        places = torch.empty_like(ordered).index_copy_(0, order, ordered * most + numbers)
        return cls(images, places, most)

    def gathered(self, values: Tensor) -> Tensor:
        """Captions by image: float (captions, words, width) -> (images, most * words, width), with zeros where an image has fewer captions."""
        empty = values.new_zeros((self.images * self.most, *values.shape[1:]))
        return empty.index_copy(0, self.places, values).view(self.images, self.most * values.shape[1], values.shape[2])

    def spread(self, values: Tensor, words: int) -> Tensor:
        """The inverse: float (images, most * words, width) -> (captions, words, width)."""
        return values.reshape(self.images * self.most, words, values.shape[2]).index_select(0, self.places)


@dataclass(frozen=True)
class TransformerState:
    """What is kept between two words.

    Attributes:
        image: Each layer's keys and values of the images, float (images, heads, positions, width of a head), shared by all rows.
        mask: bool (images, 1, 1, positions), or None.
        rows: int64 (rows,): the image of each row.
        past: Each layer's keys and values of the words so far, float (rows, heads, words, width of a head).
        words: The number of words so far.
        looking: float (rows, 1, width): the last word's input of the last layer's attention over the image; None before the first word.
    """

    image: Sequence[KeysValues]
    mask: Tensor | None
    rows: Tensor
    past: Sequence[KeysValues]
    words: int = 0
    looking: Tensor | None = None

    def select(self, rows: Tensor) -> Self:
        """As :class:`~model.decoders.base.DecoderState` says."""
        past = [(keys[rows], values[rows]) for keys, values in self.past]
        return replace(self, rows=self.rows[rows], past=past, looking=None if self.looking is None else self.looking[rows])


class TransformerDecoder(Decoder):
    """Encoder layers over the positions; embedding + position -> decoder layers -> scores of the vocabulary."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__(config)
        width = config.embedding_dim
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.embedding = nn.Embedding(config.vocabulary_size, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.input_dropout, self.output_dropout = nn.Dropout(config.input_dropout), nn.Dropout(config.output_dropout)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.word_scores = WordScores(config, width, self.embedding)
        for module in self.modules():
            if isinstance(module, MultiHead | FeedForward):
                for linear in module.children():
                    if isinstance(linear, nn.Linear):
                        nn.init.xavier_uniform_(linear.weight)
                        nn.init.zeros_(linear.bias)

    def encode(self, images: ProjectedImages) -> ProjectedImages:
        """As :meth:`model.decoders.base.Decoder.encode`: the encoder layers."""
        values, mask = images.values, _key_mask(images.mask)
        for layer in self._encoder_layers():
            values = layer(values, mask)
        return ProjectedImages(self.encoder_norm(values), images.mask)

    def forward(self, images: ProjectedImages, image_rows: Tensor, tokens: Tensor, caption_lengths: Tensor) -> Tensor:
        """As :meth:`model.decoders.base.Decoder.forward`.

        A word sees only those before it, so the padding after a caption changes none of its real tokens.
        """
        owners, mask = Owners.of(image_rows, len(images.values)), _key_mask(images.mask)
        values = self.input_dropout(self._embedded(tokens[:, :-1], 0))
        for layer in self._decoder_layers():
            values, _, _ = layer(values, None, layer.image.memory(images.values), mask, owners)
        # The last token of a caption is no input
        hidden = pack_padded_sequence(values, caption_lengths - 1, batch_first=True).data
        scores: Tensor = self.word_scores(self.output_dropout(self.norm(hidden)))
        return scores

    def first_state(self, images: ProjectedImages) -> TransformerState:
        """As :meth:`model.decoders.base.Decoder.first_state`."""
        rows = torch.arange(len(images.values), device=images.values.device)
        memory = [layer.image.memory(images.values) for layer in self._decoder_layers()]
        nothing = [(keys[:, :, :0], values[:, :, :0]) for keys, values in memory]
        return TransformerState(memory, _key_mask(images.mask), rows, nothing)

    def decoding_step(self, words: Tensor, state: DecoderState) -> tuple[Tensor, TransformerState]:
        """As :meth:`model.decoders.base.Decoder.decoding_step`."""
        state = cast("TransformerState", state)
        images = len(state.image[0][0])
        owners = Owners.of(state.rows, images)
        values = self._embedded(words.unsqueeze(1), state.words)
        looking, past = values, []
        for layer, before, image in zip(self._decoder_layers(), state.past, state.image, strict=True):
            values, now, looking = layer(values, before, image, state.mask, owners)
            past.append(now)
        after = replace(state, past=past, words=state.words + 1, looking=looking)
        return self.word_scores(self.norm(values.squeeze(1))), after

    def attention_weights(self, state: DecoderState) -> Tensor | None:
        """As :meth:`model.decoders.base.Decoder.attention_weights`: of the last layer, the mean over its heads."""
        state = cast("TransformerState", state)
        if state.looking is None:
            return None
        owners = Owners.of(state.rows, len(state.image[-1][0]))
        weights = self._decoder_layers()[-1].image.weights(owners.gathered(state.looking), state.image[-1], state.mask)
        return owners.spread(weights, 1).squeeze(1)

    def _embedded(self, words: Tensor, first: int) -> Tensor:
        """Embedded words and their positions, float32 (captions, words, width), of words, int64 (captions, words), from position ``first`` on."""
        width = self.config.embedding_dim
        positions = torch.arange(first, first + words.shape[1], device=words.device)
        embedded: Tensor = self.embedding(words) * math.sqrt(width) + _sinusoids(positions, width)
        return embedded

    def _encoder_layers(self) -> Sequence[EncoderLayer]:
        return self.encoder  # type: ignore[return-value]

    def _decoder_layers(self) -> Sequence[DecoderLayer]:
        return self.layers  # type: ignore[return-value]


def _key_mask(mask: Tensor | None) -> Tensor | None:
    """Bool (images, positions) -> (images, 1, 1, positions), which is broadcast over heads and queries."""
    return None if mask is None else mask[:, None, None]


def _sinusoids(positions: Tensor, width: int) -> Tensor:
    """The positional encoding of Vaswani et al., 2017, section 3.5, float32 (positions, width): sines, then cosines."""
    rates = torch.exp(torch.arange(0, width, 2, device=positions.device) * (-math.log(10_000.0) / width))
    angles = positions[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
