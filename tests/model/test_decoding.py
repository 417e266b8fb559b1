import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.captioner import Captioner, Ensemble
from model.decoder_config import DecoderConfig
from model.decoders.base import ProjectedImages
from model.decoding import Decoding, Hypothesis, decode, greedy, sample_captions
from model.vocabulary import END, PAD, SPECIAL, START, Vocabulary
from tests.model.lstm import lstm_of

VOCABULARY = Vocabulary((*SPECIAL, "a", "b", "c"))
WORDS = (4, 5, 6)


def captioner(seed: int = 0, scale: float = 1.0) -> Captioner:
    torch.manual_seed(seed)
    model = Captioner(DecoderConfig(feature_dim=5, vocabulary_size=len(VOCABULARY), embedding_dim=6, hidden_dim=8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


@torch.no_grad()
def log_probabilities(model: Captioner, features: torch.Tensor, words: tuple[int, ...]) -> torch.Tensor:
    """Of the word after some words, for a single image; written plainly."""
    decoder = lstm_of(model)
    _, state = decoder.lstm(model.project(features[None]).values)
    for word in (VOCABULARY.id(START), *words):
        hidden, state = decoder.lstm(decoder.embedding(torch.tensor([[word]])), state)
    scores = decoder.word_scores.output(hidden)[0, 0]
    scores[[0, 1, 3]] = -torch.inf
    if words:
        scores[words[-1]] = -torch.inf
    chances: torch.Tensor = scores.log_softmax(0)
    return chances


def one_by_one(model: Captioner, features: torch.Tensor, max_words: int) -> list[str]:
    """Greedy decoding written plainly, for a single image."""
    words: tuple[int, ...] = ()
    while len(words) < max_words:
        word = int(log_probabilities(model, features, words).argmax())
        if word == VOCABULARY.id(END):
            break
        words += (word,)
    return VOCABULARY.decode(words)


def every_caption(model: Captioner, features: torch.Tensor, max_words: int, block: int = 0, penalty: float = 0.0) -> list[Hypothesis]:
    """All captions that there are, the best first."""
    found = []
    for length in range(max_words + 1):
        for words in itertools.product(WORDS, repeat=length):
            if any(one == other for one, other in itertools.pairwise(words)):
                continue
            grams = [words[i : i + block] for i in range(length - block + 1)] if block else []
            if len(set(grams)) < len(grams):
                continue
            score = 0.0
            for place in range(length + (length < max_words)):
                chances = log_probabilities(model, features, words[:place])
                if block:
                    for word in WORDS:
                        tried = (*words[:place], word)
                        earlier = [tried[i : i + block] for i in range(place - block + 1)]
                        if place >= block and tried[-block:] in earlier:
                            chances[word] = -torch.inf
                    chances = chances.log_softmax(0)
                score += float(chances[words[place] if place < length else VOCABULARY.id(END)])
            found.append(Hypothesis(words=tuple(VOCABULARY.decode(words)), score=score / ((5 + length) / 6) ** penalty))
    return sorted(found, key=lambda hypothesis: -hypothesis.score)


def plain(model: Captioner, features: torch.Tensor) -> list[list[str]]:
    return [one_by_one(model, row, 20) for row in features]


@pytest.mark.parametrize("seed", range(5))
def test_batched_greedy_equals_image_by_image(seed: int) -> None:
    model, features = captioner(seed), torch.randn(7, 1, 5)
    with torch.no_grad():
        lstm_of(model).word_scores.output.bias[VOCABULARY.id(END)] += 0.15  # so that captions end at different lengths
    expected = plain(model, features)
    assert greedy(model, features, VOCABULARY) == expected
    assert [greedy(model, row[None], VOCABULARY)[0] for row in features] == expected


def test_start_is_not_counted_and_twenty_words_are_the_most() -> None:
    model = captioner()
    with torch.no_grad():
        lstm_of(model).word_scores.output.bias[VOCABULARY.id(END)] = -1e9
    captions = greedy(model, torch.randn(3, 1, 5), VOCABULARY)
    assert [len(caption) for caption in captions] == [20, 20, 20]
    assert not {word for caption in captions for word in caption} & set(SPECIAL)


def test_a_caption_that_ends_at_once_is_empty() -> None:
    model = captioner()
    with torch.no_grad():
        lstm_of(model).word_scores.output.bias[VOCABULARY.id(END)] = 1e9
    assert greedy(model, torch.randn(2, 1, 5), VOCABULARY) == [[], []]
    assert greedy(model, torch.randn(0, 1, 5), VOCABULARY) == []


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="eval mode"):
        greedy(captioner().train(), torch.randn(2, 1, 5), VOCABULARY)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 6.0), st.integers(1, 4), st.sampled_from([0.0, 0.7, 1.3]), st.sampled_from([0, 1, 2]))
def test_a_beam_that_is_wide_enough_finds_what_trying_everything_finds(seed: int, scale: float, max_words: int, penalty: float, block: int) -> None:
    model, features = captioner(seed, scale), torch.randn(2, 1, 5)
    decoding = Decoding(beam=200, max_words=max_words, length_penalty=penalty, block_ngrams=block)
    for row, found in zip(features, decode(model, features, VOCABULARY, decoding), strict=True):
        expected = every_caption(model, row, max_words, block, penalty)
        assert [h.score for h in found] == pytest.approx([h.score for h in expected], abs=1e-4)
        assert {h.words for h in found} == {h.words for h in expected}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 6.0), st.floats(0.0, 2.0), st.integers(0, 3))
def test_a_beam_of_one_is_greedy_and_the_batch_changes_nothing(seed: int, scale: float, penalty: float, block: int) -> None:
    model, features = captioner(seed, scale), torch.randn(5, 1, 5)
    together = greedy(model, features, VOCABULARY)
    assert together == plain(model, features)
    one = decode(model, features, VOCABULARY, Decoding(beam=1, length_penalty=penalty))
    assert [list(hypotheses[0].words) for hypotheses in one] == together
    for decoding in (Decoding(beam=3, block_ngrams=block), Decoding(beam=2, groups=2), Decoding(samples=3, seed=seed)):
        whole = decode(model, features, VOCABULARY, decoding)
        for image in range(5):
            (alone,) = decode(model, features[image : image + 1], VOCABULARY, decoding, numbers=[image])
            assert [h.words for h in alone] == [h.words for h in whole[image]]
            assert [h.score for h in alone] == pytest.approx([h.score for h in whole[image]], abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 6.0), st.integers(2, 6))
def test_hypotheses_are_distinct_ranked_and_never_worse_than_greedy(seed: int, scale: float, beam: int) -> None:
    model, features = captioner(seed, scale), torch.randn(3, 1, 5)
    first = decode(model, features, VOCABULARY, Decoding())
    for found, (best_of_one, *_) in zip(decode(model, features, VOCABULARY, Decoding(beam=beam)), first, strict=True):
        assert 1 <= len(found) <= beam
        assert len({h.words for h in found}) == len(found)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        assert all(one != other for h in found for one, other in itertools.pairwise(h.words))
        assert not {word for h in found for word in h.words} & set(SPECIAL)
        assert math.isfinite(found[0].score)
        assert best_of_one.score <= 0


def test_a_beam_with_nothing_finished_still_answers() -> None:
    model = captioner()
    with torch.no_grad():
        lstm_of(model).word_scores.output.bias[VOCABULARY.id(END)] = -torch.inf
    found = decode(model, torch.randn(2, 1, 5), VOCABULARY, Decoding(beam=4, max_words=6))
    assert all(len(h.words) == 6 for hypotheses in found for h in hypotheses)
    assert [len(hypotheses) for hypotheses in found] == [4, 4]


def test_blocked_ngrams_do_not_come_twice() -> None:
    model = captioner(3, 4.0)
    with torch.no_grad():
        lstm_of(model).word_scores.output.bias[VOCABULARY.id(END)] = -1e9
    for block in (1, 2, 3):
        for hypotheses in decode(model, torch.randn(4, 1, 5), VOCABULARY, Decoding(beam=3, block_ngrams=block)):
            for h in hypotheses:
                grams = [h.words[i : i + block] for i in range(len(h.words) - block + 1)]
                assert len(set(grams)) == len(grams)


def test_diverse_groups_begin_with_other_words_than_plain_beams() -> None:
    model, features = captioner(1, 2.0), torch.randn(6, 1, 5)
    plain_firsts, diverse_firsts = (
        [len({h.words[:1] for h in found}) for found in decode(model, features, VOCABULARY, decoding)]
        for decoding in (Decoding(beam=1, groups=3, diversity=0.0), Decoding(beam=1, groups=3, diversity=100.0))
    )
    assert plain_firsts == [1] * 6
    assert diverse_firsts == [3] * 6  # as many as there are words


def test_samples_follow_the_models_probabilities() -> None:
    model, features = captioner(2, 3.0), torch.randn(1, 1, 5)
    (drawn,) = decode(model, features, VOCABULARY, Decoding(samples=4000, max_words=1, seed=5))
    chances = log_probabilities(model, features[0], ()).exp()
    for index in (*WORDS, VOCABULARY.id(END)):
        words = () if index == VOCABULARY.id(END) else (VOCABULARY.words[index],)
        share = np.mean([h.words == words for h in drawn])
        assert share == pytest.approx(float(chances[index]), abs=4 * math.sqrt(0.25 / 4000))
    assert decode(model, features, VOCABULARY, Decoding(samples=50, seed=6)) == decode(model, features, VOCABULARY, Decoding(samples=50, seed=6))
    assert decode(model, features, VOCABULARY, Decoding(samples=50, seed=6)) != decode(model, features, VOCABULARY, Decoding(samples=50, seed=7))


@pytest.mark.parametrize("narrow", [Decoding(samples=20, top_k=1), Decoding(samples=20, top_p=1e-6), Decoding(samples=20, temperature=1e-3)])
def test_samples_of_the_likeliest_word_alone_are_greedy(narrow: Decoding) -> None:
    model, features = captioner(4, 3.0), torch.randn(3, 1, 5)
    for drawn, words in zip(decode(model, features, VOCABULARY, narrow), greedy(model, features, VOCABULARY), strict=True):
        assert {h.words for h in drawn} == {tuple(words)}


@pytest.mark.parametrize(
    "setting",
    [
        {"beam": 0},
        {"temperature": 0.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"diversity": -1.0},
        {"samples": -1},
        {"diversity": math.inf},
        {"length_penalty": math.nan},
        {"temperature": 1e-9},
        {"samples": 2, "beam": 3},
        {"top_k": 5},
        {"samples": 4097},
        {"beam": 1366, "groups": 3},
        {"max_words": 1001},
    ],
)
def test_impossible_decodings_are_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        Decoding(**setting)  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_named_and_give_no_captions() -> None:
    model = captioner()
    with torch.no_grad():
        lstm_of(model).word_scores.output.weight[WORDS[0]] = torch.nan
    for decoding in (Decoding(), Decoding(beam=3), Decoding(samples=2)):
        with pytest.raises(ValueError, match="contain NaN"):
            decode(model, torch.randn(2, 1, 5), VOCABULARY, decoding)


def test_drawn_captions_follow_the_models_probabilities_and_end_where_it_says() -> None:
    model, features = captioner(2, 3.0), torch.randn(1, 1, 5)
    torch.manual_seed(1)
    with torch.no_grad():
        images = model.project(features)
    tokens, lengths = sample_captions(model.decoder, images, torch.zeros(6000, dtype=torch.int64), VOCABULARY, max_words=3)
    end = VOCABULARY.id(END)
    assert (tokens[:, 0] == VOCABULARY.id(START)).all()
    places = torch.arange(tokens.shape[1])
    assert (tokens[places >= lengths[:, None]] == VOCABULARY.id(PAD)).all()
    last = tokens.gather(1, lengths[:, None] - 1).squeeze(1)
    assert ((last == end) | (lengths == 4)).all()  # cut captions alone have no end
    inner = tokens.masked_fill(places >= lengths[:, None] - 1, -1)
    assert not (inner == end).any()
    with torch.no_grad():
        state = model.first_state(features)
        logits, state = model.decoding_step(torch.tensor([VOCABULARY.id(START)]), state)
        second, _ = model.decoding_step(torch.tensor([WORDS[0]]), state)
    for index, chance in enumerate(logits[0].softmax(0).tolist()):
        assert (tokens[:, 1] == index).float().mean().item() == pytest.approx(chance, abs=0.03)
    after = tokens[tokens[:, 1] == WORDS[0]]
    for index, chance in enumerate(second[0].softmax(0).tolist()):
        assert (after[:, 2] == index).float().mean().item() == pytest.approx(chance, abs=4 * math.sqrt(0.25 / max(len(after), 1)))


def test_drawing_leaves_the_decoder_in_its_mode_and_dropout_at_rest() -> None:
    model = Captioner(DecoderConfig(feature_dim=5, vocabulary_size=len(VOCABULARY), embedding_dim=6, hidden_dim=8, layers=2, output_dropout=0.9))
    images, rows = ProjectedImages(torch.randn(20, 1, 6)), torch.arange(20)
    torch.manual_seed(0)
    first = sample_captions(model.decoder, images, rows, VOCABULARY)
    assert model.decoder.training
    torch.manual_seed(0)
    second = sample_captions(model.decoder.eval(), images, rows, VOCABULARY)
    assert not model.decoder.training
    assert torch.equal(first[0], second[0])


def test_an_ensemble_of_one_says_what_its_member_says() -> None:
    model, features = captioner(5, 3.0), torch.randn(4, 1, 5)
    for decoding in (Decoding(), Decoding(beam=3)):
        alone, together = (decode(one, features, VOCABULARY, decoding) for one in (model, Ensemble([model]).eval()))
        assert [[h.words for h in found] for found in alone] == [[h.words for h in found] for found in together]
