import pytest
import torch

from model.decoder import Captioner, DecoderConfig
from model.decoding import greedy
from model.vocabulary import END, SPECIAL, START, Vocabulary

VOCABULARY = Vocabulary((*SPECIAL, "a", "b", "c"))


def captioner(seed: int = 0) -> Captioner:
    torch.manual_seed(seed)
    return Captioner(DecoderConfig(feature_dim=5, vocabulary_size=len(VOCABULARY), embedding_dim=6, hidden_dim=8)).eval()


def one_by_one(model: Captioner, features: torch.Tensor, max_words: int) -> list[str]:
    """Greedy decoding written plainly, for a single image."""
    decoder = model.decoder
    _, state = decoder.lstm(model.projection(features).unsqueeze(1))
    words: list[str] = []
    last = VOCABULARY.id(START)
    while len(words) < max_words:
        hidden, state = decoder.lstm(decoder.embedding(torch.tensor([[last]])), state)
        scores = decoder.output(hidden)[0, 0]
        last = max((index for index in range(len(VOCABULARY)) if index not in (0, 1, 3)), key=lambda index: float(scores[index]))
        if last == VOCABULARY.id(END):
            break
        words.append(VOCABULARY.words[last])
    return words


@torch.no_grad()
def plain(model: Captioner, features: torch.Tensor) -> list[list[str]]:
    return [one_by_one(model, row[None], 20) for row in features]


@pytest.mark.parametrize("seed", range(5))
def test_batched_greedy_equals_image_by_image(seed: int) -> None:
    model, features = captioner(seed), torch.randn(7, 5)
    with torch.no_grad():
        model.decoder.output.bias[VOCABULARY.id(END)] += 0.15  # so that captions end at different lengths
    expected = plain(model, features)
    assert greedy(model, features, VOCABULARY) == expected
    assert [greedy(model, row[None], VOCABULARY)[0] for row in features] == expected


def test_start_is_not_counted_and_twenty_words_are_the_most() -> None:
    model = captioner()
    with torch.no_grad():
        model.decoder.output.bias[VOCABULARY.id(END)] = -1e9
    captions = greedy(model, torch.randn(3, 5), VOCABULARY)
    assert [len(caption) for caption in captions] == [20, 20, 20]
    assert not {word for caption in captions for word in caption} & set(SPECIAL)


def test_a_caption_that_ends_at_once_is_empty() -> None:
    model = captioner()
    with torch.no_grad():
        model.decoder.output.bias[VOCABULARY.id(END)] = 1e9
    assert greedy(model, torch.randn(2, 5), VOCABULARY) == [[], []]
    assert greedy(model, torch.randn(0, 5), VOCABULARY) == []


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        greedy(captioner().train(), torch.randn(2, 5), VOCABULARY)
