"""Which decoders there are, and a captioner's decoder and sizes as runs record them. Imports nothing heavy, so that ``--help`` answers at once."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from model.limits import SIZE_LIMITS, check_type
from model.registry import Registry

# By name, the subclasses of model.decoders.base.Decoder, each built from a DecoderConfig.
DECODERS = Registry[Any](
    "decoder",
    lstm="model.decoders.lstm:LSTMDecoder",
    attention="model.decoders.attention:AttentionDecoder",
    transformer="model.decoders.transformer:TransformerDecoder",
)

ImageInput = Literal["once", "every_step"]

# The settings that only some decoders have, and which do. A decoder that is registered elsewhere may use any.
DECODERS_HERE = tuple(DECODERS)
SETTINGS_OF = {
    "layers": ("lstm", "transformer"),
    "image_input": ("lstm",),
    "heads": ("transformer",),
    "encoder_layers": ("transformer",),
}


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A captioner's decoder and sizes; the defaults are the tutorial's.

    Attributes:
        decoder: A name in :data:`DECODERS`.
        embedding_dim: The size of word embeddings and of projected positions; the width of a transformer.
        hidden_dim: The size of the LSTMs' states and of additive attention; of a transformer's feed-forward layers.
        layers: Of the LSTM or of the transformer's decoder; the attention decoder has one.
        heads: Of a transformer's attention; they divide the width.
        encoder_layers: Of a transformer, over the positions.
        image_input: ``once``: the projected image is the LSTM's first input only (Vinyals et al., 2015, "Show and tell");
            ``every_step``: it is also concatenated to each word (Mao et al., 2015, "Deep captioning with multimodal recurrent neural networks").
        feature_dropout: Dropout probability of image features in training; see :class:`model.projection.Projection`.
        input_dropout, output_dropout: Dropout probability of the LSTM's inputs and outputs in training, also between its layers
            (Zaremba et al., 2014, "Recurrent neural network regularization").
        tie_weights: The output layer shares its weights with the word embedding (Press and Wolf, 2017, "Using the output embedding to
            improve language models"); where the LSTM's size differs from the embedding's, a linear layer comes in between.

    Raises:
        TypeError: A value has another type.
        ValueError: An unknown decoder, or a size out of the range 1 to :data:`model.limits.SIZE_LIMITS`.
    """

    feature_dim: int
    vocabulary_size: int
    decoder: str = "lstm"
    embedding_dim: int = 256
    hidden_dim: int = 512
    layers: int = 1
    heads: int = 8
    encoder_layers: int = 1
    image_input: ImageInput = "once"
    feature_dropout: float = 0.0
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    tie_weights: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = str if field.type is ImageInput else field.type
            assert isinstance(kind, type)
            check_type(field.name, getattr(self, field.name), kind)
        if self.decoder not in DECODERS:
            raise ValueError(DECODERS.unknown(self.decoder))
        for name, largest in SIZE_LIMITS.items():
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1 and at most {largest}")
        for name in ("feature_dropout", "input_dropout", "output_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 0 and below 1")
        if self.image_input not in ("once", "every_step"):
            raise ValueError(f"image_input is {self.image_input}, it must be once or every_step")
        for name, problem in decoder_problems(self):
            raise ValueError(f"{name} is {getattr(self, name)}: {problem}")


def decoder_problems(settings: Any) -> Iterator[tuple[str, str]]:
    """The settings that do not go with the decoder: (name, what is wrong).

    Args:
        settings: Has the fields of a :class:`DecoderConfig` from ``decoder`` on as attributes.
    """
    decoder = settings.decoder
    for name, decoders in SETTINGS_OF.items():
        if decoder in DECODERS_HERE and decoder not in decoders and getattr(settings, name) != getattr(DecoderConfig, name):
            yield name, f"the decoder {decoder} has no such setting. Omit it."
    if decoder == "transformer" and settings.embedding_dim % settings.heads:
        yield "heads", f"must divide the embedding's size, {settings.embedding_dim}."
