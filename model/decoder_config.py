"""The shape of a captioner, as runs record it. Imports nothing heavy: the command line reads its choices from here."""

from dataclasses import dataclass
from typing import Literal

ImageInput = Literal["once", "every_step"]


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a captioner; the defaults are the tutorial's.

    Attributes:
        image_input: ``once``: the projected image is the LSTM's first input alone (Vinyals et al., 2015, "Show and tell");
            ``every_step``: it stands beside each word too (Mao et al., 2015, "Deep captioning with multimodal recurrent neural networks").
        feature_dropout: Share of an image's features that a training step leaves out; see :class:`model.encoder.Projection`.
        input_dropout, output_dropout: Share of the LSTM's inputs and outputs that a training step leaves out, between its layers too
            (Zaremba et al., 2014, "Recurrent neural network regularization").
        tie_weights: The vocabulary's scores are products with the words' own embeddings (Press and Wolf, 2017, "Using the output embedding
            to improve language models"); a linear layer goes before where the LSTM's size is another.
    """

    feature_dim: int
    vocabulary_size: int
    embedding_dim: int = 256
    hidden_dim: int = 512
    layers: int = 1
    image_input: ImageInput = "once"
    feature_dropout: float = 0.0
    input_dropout: float = 0.0
    output_dropout: float = 0.0
    tie_weights: bool = False

    def __post_init__(self) -> None:
        for name in ("feature_dim", "vocabulary_size", "embedding_dim", "hidden_dim", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 1")
        for name in ("feature_dropout", "input_dropout", "output_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be at least 0 and below 1")
        if self.image_input not in ("once", "every_step"):
            raise ValueError(f"image_input is {self.image_input}, it must be once or every_step")
