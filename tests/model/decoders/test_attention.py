"""The attention decoder against the formulas of its paper, computed for one caption, word by word."""

import torch
from torch.nn import functional

from model.captioner import Captioner
from model.decoder_config import DecoderConfig
from model.decoders.attention import AttentionDecoder


def test_scores_equal_those_of_two_lstms_and_additive_attention_written_out() -> None:
    torch.manual_seed(0)
    config = DecoderConfig(feature_dim=6, vocabulary_size=11, decoder="attention", embedding_dim=7, hidden_dim=5)
    model = Captioner(config).eval()
    decoder = model.decoder
    assert isinstance(decoder, AttentionDecoder)
    tokens, lengths = torch.tensor([[1, 5, 9, 4, 2]]), torch.tensor([5])
    projected = model.project(torch.randn(1, 4, 6))
    found = decoder(projected, torch.tensor([0]), tokens, lengths)

    positions = projected.values[0]
    # torch.nn.LSTMCell's weights: those of the input [language hidden state, mean position, word], then those of the hidden state
    from_language, from_attention = decoder.attention_gates.weight.chunk(2, dim=1)
    attention, language = torch.nn.LSTMCell(5 + 7 + 7, 5), torch.nn.LSTMCell(7 + 5, 5)
    with torch.no_grad():
        attention.weight_ih.copy_(torch.cat([from_language, decoder.mean_gates.weight, decoder.word_gates.weight], dim=1))
        attention.weight_hh.copy_(from_attention)
        attention.bias_ih.copy_(decoder.word_gates.bias)
        language.weight_ih.copy_(decoder.language_gates.weight[:, :12])
        language.weight_hh.copy_(decoder.language_gates.weight[:, 12:])
        language.bias_ih.copy_(decoder.language_gates.bias)
        attention.bias_hh.zero_()
        language.bias_hh.zero_()
    first, second = (torch.zeros(1, 5), torch.zeros(1, 5)), (torch.zeros(1, 5), torch.zeros(1, 5))
    for place, word in enumerate(tokens[0, :-1]):
        first = attention(torch.cat([second[0], positions.mean(dim=0, keepdim=True), decoder.embedding(word)[None]], dim=1), first)
        logits = [decoder.weight(torch.tanh(decoder.key(position) + decoder.query(first[0][0]))) for position in positions]
        weights = functional.softmax(torch.cat(logits), dim=0)
        seen = (weights[:, None] * positions).sum(dim=0, keepdim=True)
        second = language(torch.cat([seen, first[0]], dim=1), second)
        torch.testing.assert_close(found[place], decoder.word_scores.output(second[0])[0], atol=1e-6, rtol=1e-5)
