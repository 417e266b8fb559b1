"""What holds for every decoder: padding and other captions change nothing, and one word after another gives the scores of all at once."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from model.captioner import Captioner, Ensemble
from model.decoder_config import DECODERS, DecoderConfig
from model.decoders.transformer import Owners, TransformerState
from model.decoding import Decoding, decode, greedy, sample_captions
from model.vocabulary import SPECIAL, Vocabulary

VOCABULARY = Vocabulary((*SPECIAL, *(f"w{number}" for number in range(16))))
SHAPES: dict[str, dict[str, Any]] = {
    "lstm": {},
    "attention": {},
    "attention tied": {"tie_weights": True},
    "transformer": {"layers": 2, "heads": 4, "encoder_layers": 2},
    "transformer tied": {"heads": 2, "tie_weights": True},
}
POSITIONS, DIM = 9, 10


def captioner(shape: str, seed: int = 0) -> Captioner:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"feature_dim": DIM, "vocabulary_size": len(VOCABULARY), "embedding_dim": 16, "hidden_dim": 12}
    model = Captioner(DecoderConfig(**sizes, decoder=shape.split(maxsplit=1)[0], **SHAPES[shape])).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2.0)  # so that captions differ
    return model


def images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features and mask of images with 1 to POSITIONS real positions; padding holds numbers that must not matter."""
    random = np.random.default_rng(seed)
    counts = torch.from_numpy(random.integers(1, POSITIONS + 1, count))
    counts[0] = POSITIONS
    return torch.from_numpy(random.standard_normal((count, POSITIONS, DIM)).astype(np.float32)), torch.arange(POSITIONS) < counts[:, None]


def captions(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and lengths, in descending order, of captions of these numbers of words."""
    random = np.random.default_rng(seed)
    lengths = sorted((length + 2 for length in lengths), reverse=True)
    tokens = torch.zeros((len(lengths), lengths[0]), dtype=torch.int64)
    for row, length in enumerate(lengths):
        words = random.integers(len(SPECIAL), len(VOCABULARY), length - 2).tolist()
        tokens[row, :length] = torch.tensor([VOCABULARY.id("<start>"), *words, VOCABULARY.id("<end>")])
    return tokens, torch.tensor(lengths)


def test_every_decoder_is_tested_here() -> None:
    assert {shape.split()[0] for shape in SHAPES} == set(DECODERS)


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.integers(0, 8), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_a_captions_loss_is_the_same_alone_and_in_any_batch_whatever_stands_in_the_padding(shape: str, lengths: list[int], seed: int) -> None:
    model = captioner(shape)
    features, mask = images(4, seed)
    tokens, caption_lengths = captions(lengths, seed)
    rows = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, len(lengths)))
    with torch.no_grad():
        together = model(model.project(features, mask), rows, tokens, caption_lengths)
        other = torch.where(mask[:, :, None], features, 100.0)
        assert torch.equal(model(model.project(other, mask), rows, tokens, caption_lengths), together)
        alone = torch.zeros(())
        for row, length, caption in zip(rows.tolist(), caption_lengths.tolist(), tokens, strict=True):
            own = model.project(features[row : row + 1, : int(mask[row].sum())])
            alone += model(own, torch.tensor([0]), caption[None, :length], torch.tensor([length]))
    predicted = model.predicted_tokens(int(caption_lengths.sum()), len(caption_lengths))
    assert float((together - alone).abs()) / predicted < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decoding", [Decoding(), Decoding(beam=3), Decoding(beam=2, groups=2, diversity=0.5), Decoding(samples=3, seed=1)], ids=str)
def test_decoded_captions_are_the_same_alone_and_in_any_batch(shape: str, decoding: Decoding) -> None:
    model, (features, mask) = captioner(shape), images(5)
    together = decode(model, features, VOCABULARY, decoding, mask=mask)
    assert len({round(found[0].score, 3) for found in together}) == 5  # the images matter
    for image, found in enumerate(together):
        own = features[image : image + 1, : int(mask[image].sum())]
        (alone,) = decode(model, own, VOCABULARY, decoding, numbers=[image])
        assert [hypothesis.words for hypothesis in alone] == [hypothesis.words for hypothesis in found]
        assert [hypothesis.score for hypothesis in alone] == pytest.approx([hypothesis.score for hypothesis in found], abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_word_after_another_gives_the_scores_of_all_positions_at_once(shape: str) -> None:
    model, (features, mask) = captioner(shape), images(3)
    tokens, lengths = captions([7, 5, 5, 2])
    rows = torch.tensor([2, 0, 2, 1])
    with torch.no_grad():
        projected = model.project(features, mask)
        together = model.decoder(projected, rows, tokens, lengths)
        state, steps = model.decoder.first_state(projected).select(rows), []
        for position in range(tokens.shape[1] - 1):
            scores, state = model.decoding_step(tokens[:, position], state)
            steps.append(scores)
    # float (captions, longest - 1, words): the prediction after each token; those of <start> come first where there are any
    one_by_one = torch.stack(steps, dim=1)
    expected = functional.pad(one_by_one, (0, 0, 1, 0))
    at = model.decoder.targets(torch.arange(tokens.numel()).view_as(tokens), lengths)
    after_start = at % tokens.shape[1] > 0
    torch.testing.assert_close(together[after_start], expected.flatten(0, 1)[at[after_start]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_later_word_changes_no_earlier_score(shape: str) -> None:
    model, (features, mask) = captioner(shape), images(1)
    tokens, lengths = captions([6])
    projected, rows = model.project(features, mask), torch.tensor([0])
    before = model.decoder(projected, rows, tokens, lengths)
    changed = tokens.clone()
    changed[0, 4] = len(SPECIAL) + (changed[0, 4] - len(SPECIAL) + 1) % 16
    after = model.decoder(projected, rows, changed, lengths)
    # Token 4 is first an input where token 5 is predicted
    same = 5 if model.decoder.predicts_start else 4
    torch.testing.assert_close(after[:same], before[:same])
    assert not torch.allclose(after[same], before[same])


@pytest.mark.parametrize("shape", SHAPES)
def test_selected_rows_continue_like_those_rows_alone(shape: str) -> None:
    model, (features, mask) = captioner(shape), images(3)
    words, after, rows = torch.tensor([5, 7, 9]), torch.tensor([4, 8, 6, 6]), torch.tensor([2, 0, 0, 2])
    with torch.no_grad():
        _, state = model.decoding_step(words, model.first_state(features, mask))
        together, _ = model.decoding_step(after, state.select(rows))
        for place, row in enumerate(rows.tolist()):
            _, alone = model.decoding_step(words[row : row + 1], model.first_state(features[row : row + 1], mask[row : row + 1]))
            expected, _ = model.decoding_step(after[place : place + 1], alone)
            torch.testing.assert_close(together[place : place + 1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_reach_every_weight_and_are_those_of_an_image_for_each_caption(shape: str) -> None:
    model, (features, mask) = captioner(shape), images(2)
    tokens, lengths = captions([6, 3, 3, 1])
    rows, found = torch.tensor([1, 0, 1, 1]), []
    for each in (False, True):
        model.zero_grad()
        chosen = (features[rows], mask[rows]) if each else (features, mask)
        model(model.project(*chosen), torch.arange(4) if each else rows, tokens, lengths).backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    shared, repeated = found
    for name, gradient in shared.items():
        assert gradient is not None and bool(gradient.any()), name
        torch.testing.assert_close(gradient, repeated[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_captions_have_the_probabilities_that_the_loss_gives_them(shape: str) -> None:
    model, (features, mask) = captioner(shape), images(2)
    projected, rows = model.project(features, mask), torch.tensor([0, 1, 1])
    torch.manual_seed(3)
    tokens, lengths = sample_captions(model.decoder, projected, rows, VOCABULARY, max_words=5)
    state, total = model.decoder.first_state(projected).select(rows), torch.zeros(3)
    for position in range(1, tokens.shape[1]):
        scores, state = model.decoding_step(tokens[:, position - 1], state)
        chosen = scores.log_softmax(dim=1).gather(1, tokens[:, position : position + 1]).squeeze(1)
        total += torch.where(position < lengths, chosen, 0.0)
    order = lengths.argsort(descending=True, stable=True)
    loss = model(projected, rows[order], tokens[order], lengths[order], weights=torch.ones(3))
    torch.testing.assert_close(loss, -total.sum(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_scheduled_sampling_keeps_the_start_and_with_probability_0_everything(shape: str) -> None:
    model, (features, mask) = captioner(shape), images(2)
    tokens, lengths = captions([6, 3])
    projected, rows = model.project(features, mask), torch.tensor([1, 0])
    assert torch.equal(model.decoder.scheduled_sampling_inputs(projected, rows, tokens, lengths, 0.0), tokens)
    torch.manual_seed(0)
    replaced = model.decoder.scheduled_sampling_inputs(projected, rows, tokens, lengths, 1.0)
    assert replaced.shape == tokens.shape
    assert torch.equal(replaced[:, 0], tokens[:, 0])
    assert not torch.equal(replaced, tokens)
    assert not replaced[1, 5:].any()


def test_decoders_of_different_kinds_caption_together_with_the_mean_of_their_probabilities() -> None:
    members, (features, mask) = [captioner(shape) for shape in ("lstm", "attention", "transformer")], images(3)
    together, words = Ensemble(members).eval(), torch.tensor([4, 9, 11])
    with torch.no_grad():
        spoken, _ = together.decoding_step(words, together.first_state(features, mask))
        chances = [member.decoding_step(words, member.first_state(features, mask))[0].softmax(dim=1) for member in members]
    torch.testing.assert_close(spoken.exp(), torch.stack(chances).mean(dim=0), atol=1e-6, rtol=1e-4)
    assert greedy(together, features, VOCABULARY, mask=mask) == [
        greedy(together, features[image : image + 1], VOCABULARY, mask=mask[image : image + 1])[0] for image in range(3)
    ]


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "lstm"])
def test_attention_weights_add_up_to_1_over_the_real_positions(shape: str) -> None:
    model, (features, mask) = captioner(shape), images(4)
    rows = torch.tensor([3, 0, 0, 1])
    with torch.no_grad():
        state = model.first_state(features, mask).select(rows)
        assert model.decoder.attention_weights(state) is None
        _, state = model.decoding_step(torch.tensor([1, 1, 1, 1]), state)
        weights = model.decoder.attention_weights(state)
    assert weights is not None
    assert weights.shape == (4, POSITIONS)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    assert not weights[~mask[rows]].any()
    assert bool((weights[mask[rows]] > 0).all())


def test_a_decoder_of_one_vector_sees_the_mean_of_the_positions_and_has_no_attention() -> None:
    model, (features, mask) = captioner("lstm"), images(3)
    means = torch.stack([features[image, : int(mask[image].sum())].mean(dim=0) for image in range(3)])
    words = torch.tensor([5, 6, 7])
    found, state = model.decoding_step(words, model.first_state(features, mask))
    expected, _ = model.decoding_step(words, model.first_state(means[:, None]))
    torch.testing.assert_close(found, expected)
    assert model.decoder.attention_weights(state) is None


def test_beams_share_the_keys_and_values_of_their_image() -> None:
    model, (features, mask) = captioner("transformer"), images(2)
    state = model.first_state(features, mask).select(torch.tensor([0, 0, 0, 1, 1]))
    assert isinstance(state, TransformerState)
    assert [keys.shape[0] for keys, _ in state.image] == [2, 2]
    owners = Owners.of(torch.tensor([1, 0, 1, 1]), images=2)
    values = torch.arange(4.0).view(4, 1, 1)
    assert owners.gathered(values).flatten(1).tolist() == [[1, 0, 0], [0, 2, 3]]
    assert torch.equal(owners.spread(owners.gathered(values), 1), values)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"decoder": "attention", "layers": 2}, "layers is 2: the decoder attention has no such setting"),
        ({"decoder": "attention", "image_input": "every_step"}, "image_input is every_step"),
        ({"decoder": "lstm", "heads": 4}, "heads is 4"),
        ({"decoder": "transformer", "embedding_dim": 20, "heads": 3}, "heads is 3: must divide the embedding's size, 20"),
    ],
)
def test_settings_that_a_decoder_does_not_have_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DecoderConfig(feature_dim=4, vocabulary_size=9, **wrong)
