"""The LSTM decoder's state belongs to rows that can be selected, repeated and left out."""

from typing import Any

import pytest
import torch

from model.decoder_config import DecoderConfig
from model.decoders.base import ProjectedImages
from model.decoders.lstm import LSTMDecoder


@pytest.mark.parametrize("shape", [{}, {"layers": 2}, {"image_input": "every_step", "tie_weights": True}])
def test_selected_rows_continue_like_those_rows_alone(shape: dict[str, Any]) -> None:
    torch.manual_seed(0)
    decoder = LSTMDecoder(DecoderConfig(feature_dim=4, vocabulary_size=9, embedding_dim=5, hidden_dim=6, **shape)).eval()
    values, words = torch.randn(3, 1, 5), torch.tensor([1, 5, 7])
    _, state = decoder.decoding_step(words, decoder.first_state(ProjectedImages(values)))
    rows, after = torch.tensor([2, 0, 0]), torch.tensor([4, 8, 6])
    together, _ = decoder.decoding_step(after, state.select(rows))
    for place, row in enumerate(rows.tolist()):
        _, alone = decoder.decoding_step(words[row : row + 1], decoder.first_state(ProjectedImages(values[row : row + 1])))
        expected, _ = decoder.decoding_step(after[place : place + 1], alone)
        torch.testing.assert_close(together[place : place + 1], expected)
