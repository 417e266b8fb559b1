import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from model.decoder import Captioner, DecoderConfig


def test_the_loss_equals_a_straightforward_implementation() -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(feature_dim=10, vocabulary_size=23, embedding_dim=12, hidden_dim=14))
    features = torch.randn(6, 10)
    lengths = torch.tensor([9, 9, 6, 5, 3, 2])
    tokens = torch.zeros(6, 9, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(1, 23, (int(length),))
    loss = captioner(captioner.projection(features), torch.arange(6), tokens, lengths) / lengths.sum()

    # The tutorial's way: embeddings of everything, cut by packing.
    linear, norm, decoder = captioner.projection.linear, nn.BatchNorm1d(12), captioner.decoder
    images = norm(linear(features))
    embedded = torch.cat([images.unsqueeze(1), decoder.embedding(tokens)], dim=1)
    hidden, _ = decoder.lstm(pack_padded_sequence(embedded, lengths, batch_first=True))
    targets = pack_padded_sequence(tokens, lengths, batch_first=True).data
    expected = nn.CrossEntropyLoss()(decoder.output(hidden.data), targets)

    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_captions_of_one_image_share_its_features() -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(feature_dim=4, vocabulary_size=9, embedding_dim=5, hidden_dim=6)).eval()
    images = captioner.projection(torch.randn(2, 4))
    tokens, lengths = torch.tensor([[1, 5, 2], [1, 6, 2], [1, 7, 2]]), torch.tensor([3, 3, 3])
    shared = captioner(images, torch.tensor([0, 0, 1]), tokens, lengths)
    repeated = captioner(images[[0, 0, 1]], torch.arange(3), tokens, lengths)
    torch.testing.assert_close(shared, repeated)


def test_no_caption_at_all_gives_zero_and_gradients_of_zero() -> None:
    captioner = Captioner(DecoderConfig(feature_dim=4, vocabulary_size=9, embedding_dim=5, hidden_dim=6))
    images = torch.zeros(0, 5, requires_grad=True)
    loss = captioner(images, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in captioner.decoder.parameters())


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="layers is 0"):
        DecoderConfig(feature_dim=1, vocabulary_size=1, layers=0)
