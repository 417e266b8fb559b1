"""The parts of a captioner's LSTM decoder, for tests that look into it."""

from model.captioner import Captioner
from model.decoders.lstm import LSTMDecoder


def lstm_of(captioner: Captioner) -> LSTMDecoder:
    assert isinstance(captioner.decoder, LSTMDecoder)
    return captioner.decoder
