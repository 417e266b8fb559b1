import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from model.decoder import Captioner, DecoderConfig


def test_the_loss_equals_a_straightforward_implementation() -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(feature_dim=10, vocabulary_size=23, embedding_dim=12, hidden_dim=14))
    features = torch.randn(6, 10)
    lengths = torch.tensor([5, 9, 3, 9, 2, 6])
    tokens = torch.zeros(6, 9, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(1, 23, (int(length),))
    loss, count = captioner(features, torch.arange(6), tokens, lengths)

    # The tutorial's way: sorted by length, embeddings of everything, cut by packing.
    order = lengths.argsort(descending=True, stable=True)
    linear, norm, decoder = captioner.projection.linear, nn.BatchNorm1d(12), captioner.decoder
    images = norm(linear(features))[order]
    embedded = torch.cat([images.unsqueeze(1), decoder.embedding(tokens[order])], dim=1)
    hidden, _ = decoder.lstm(pack_padded_sequence(embedded, lengths[order], batch_first=True))
    targets = pack_padded_sequence(tokens[order], lengths[order], batch_first=True).data
    expected = nn.CrossEntropyLoss()(decoder.output(hidden.data), targets)

    assert count == int(lengths.sum())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_captions_of_one_image_share_its_features() -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(feature_dim=4, vocabulary_size=9, embedding_dim=5, hidden_dim=6)).eval()
    features = torch.randn(2, 4)
    tokens, lengths = torch.tensor([[1, 5, 2], [1, 6, 2], [1, 7, 2]]), torch.tensor([3, 3, 3])
    shared, _ = captioner(features, torch.tensor([0, 0, 1]), tokens, lengths)
    repeated, _ = captioner(features[[0, 0, 1]], torch.arange(3), tokens, lengths)
    torch.testing.assert_close(shared, repeated)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="layers is 0"):
        DecoderConfig(feature_dim=1, vocabulary_size=1, layers=0)
