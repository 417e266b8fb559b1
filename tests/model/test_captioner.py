from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from model.captioner import Captioner, Ensemble
from model.decoder_config import DecoderConfig, ImageInput
from model.decoders.base import DecoderState, ProjectedImages
from model.decoders.lstm import LSTMState
from pipeline.runs.checkpoints import TrainingPosition, load_model, save_checkpoint
from tests.model.lstm import lstm_of

SIZES: dict[str, Any] = {"feature_dim": 10, "vocabulary_size": 23, "embedding_dim": 12, "hidden_dim": 14}


def test_the_loss_equals_a_straightforward_implementation() -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(feature_dim=10, vocabulary_size=23, embedding_dim=12, hidden_dim=14))
    features = torch.randn(6, 1, 10)
    lengths = torch.tensor([9, 9, 6, 5, 3, 2])
    tokens = torch.zeros(6, 9, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(1, 23, (int(length),))
    loss = captioner(captioner.project(features), torch.arange(6), tokens, lengths) / lengths.sum()

    # The tutorial's way: embeddings of everything, cut by packing.
    linear, norm, decoder = captioner.projection.linear, nn.BatchNorm1d(12), lstm_of(captioner)
    images = norm(linear(features.squeeze(1)))
    embedded = torch.cat([images.unsqueeze(1), decoder.embedding(tokens)], dim=1)
    hidden, _ = decoder.lstm(pack_padded_sequence(embedded, lengths, batch_first=True))
    targets = pack_padded_sequence(tokens, lengths, batch_first=True).data
    expected = nn.CrossEntropyLoss()(decoder.word_scores.output(hidden.data), targets)

    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_captions_of_one_image_share_its_features() -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(feature_dim=4, vocabulary_size=9, embedding_dim=5, hidden_dim=6)).eval()
    images = captioner.project(torch.randn(2, 1, 4))
    tokens, lengths = torch.tensor([[1, 5, 2], [1, 6, 2], [1, 7, 2]]), torch.tensor([3, 3, 3])
    shared = captioner(images, torch.tensor([0, 0, 1]), tokens, lengths)
    repeated = captioner(ProjectedImages(images.values[[0, 0, 1]]), torch.arange(3), tokens, lengths)
    torch.testing.assert_close(shared, repeated)


def test_gradients_of_an_image_with_several_captions_are_the_same_each_time() -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(feature_dim=8, vocabulary_size=9, embedding_dim=256, hidden_dim=6))
    images = torch.randn(40, 1, 256, requires_grad=True)
    rows, lengths = torch.arange(200) % 40, torch.full((200,), 3)
    tokens = torch.randint(1, 9, (200, 3))
    found: set[bytes] = set()
    torch.set_num_threads(2)
    try:
        for _ in range(50):
            images.grad = None
            captioner(ProjectedImages(images), rows, tokens, lengths).backward()
            assert images.grad is not None
            found.add(images.grad.numpy().tobytes())
    finally:
        torch.set_num_threads(1)
    assert len(found) == 1


def test_no_caption_at_all_gives_zero_and_gradients_of_zero() -> None:
    captioner = Captioner(DecoderConfig(feature_dim=4, vocabulary_size=9, embedding_dim=5, hidden_dim=6))
    images = torch.zeros(0, 1, 5, requires_grad=True)
    loss = captioner(
        ProjectedImages(images), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    )
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in captioner.decoder.parameters())


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="layers is 0"):
        DecoderConfig(feature_dim=1, vocabulary_size=1, layers=0)


def batch(captioner: Captioner, rows: int = 6) -> tuple[ProjectedImages, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Projected images, their rows, tokens and lengths of some captions."""
    config = captioner.config
    lengths = torch.tensor([9, 9, 6, 5, 3, 2])[:rows]
    tokens = torch.zeros(rows, int(lengths[0]), dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(4, config.vocabulary_size, (int(length),))
    tokens[:, 0] = 1
    return captioner.project(torch.randn(rows, 1, config.feature_dim)), torch.arange(rows), tokens, lengths


SHAPES: list[dict[str, Any]] = [
    {},
    {"image_input": "every_step"},
    {"tie_weights": True},
    {"tie_weights": True, "hidden_dim": 12, "layers": 2, "image_input": "every_step"},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_one_word_after_another_gives_the_scores_of_all_positions_at_once(shape: dict[str, Any]) -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(**{**SIZES, **shape})).eval()
    images, rows, tokens, lengths = batch(captioner, rows=1)
    together = captioner.decoder(images, rows, tokens, lengths)
    state: DecoderState = lstm_of(captioner).first_state(images)
    assert isinstance(state, LSTMState)
    torch.testing.assert_close(together[:1], lstm_of(captioner).word_scores.output(lstm_of(captioner).word_scores.to_embedding(state.hidden[-1])))
    for position in range(tokens.shape[1] - 1):
        alone, state = captioner.decoding_step(tokens[:, position], state)
        torch.testing.assert_close(together[position + 1 : position + 2], alone)


@pytest.mark.parametrize("image_input", ["once", "every_step"])
def test_only_an_image_at_every_step_reaches_late_words_directly(image_input: ImageInput) -> None:
    captioner = Captioner(DecoderConfig(**{**SIZES, "image_input": image_input}))
    with torch.no_grad():
        recurrent, *biases = (dict(lstm_of(captioner).lstm.named_parameters())[f"{name}_l0"] for name in ("weight_hh", "bias_ih", "bias_hh"))
        recurrent.zero_()  # nothing is remembered but in the cell
        for bias in biases:
            bias[14:28] = -100.0  # the forget gate is shut
    images, rows, tokens, lengths = batch(captioner)
    values = images.values.detach().requires_grad_()
    last = captioner.decoder(ProjectedImages(values), rows, tokens, lengths)[-1].sum()  # the longest two captions' last place
    (gradient,) = torch.autograd.grad(last, values)
    assert (gradient[1].abs().sum() > 0) == (image_input == "every_step")


def test_tied_weights_are_one_tensor_and_stay_so_through_a_file(tmp_path: Path) -> None:
    captioner = Captioner(DecoderConfig(**SIZES, tie_weights=True))
    assert lstm_of(captioner).word_scores.output.weight is lstm_of(captioner).embedding.weight
    untied = Captioner(DecoderConfig(**SIZES))
    count, other = (sum(parameter.numel() for parameter in model.parameters()) for model in (captioner, untied))
    assert other - count == 23 * 14 - (14 * 12 + 12)  # one table of words fewer; a layer from 14 to 12 more
    position = TrainingPosition(epoch=0, step_in_epoch=1, step=1)
    path = save_checkpoint(tmp_path, captioner, torch.optim.AdamW(captioner.parameters()), position)
    again = Captioner(captioner.config)
    load_model(path, again)
    assert lstm_of(again).word_scores.output.weight is lstm_of(again).embedding.weight
    torch.testing.assert_close(lstm_of(again).word_scores.output.weight, lstm_of(captioner).word_scores.output.weight)


def test_label_smoothing_is_torchs_own_mean_over_all_words() -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(**SIZES)).eval()
    images, rows, tokens, lengths = batch(captioner)
    logs = captioner.decoder(images, rows, tokens, lengths).log_softmax(1)
    targets = pack_padded_sequence(tokens, lengths, batch_first=True).data
    true = -logs.gather(1, targets[:, None]).sum()
    expected = 0.9 * true + 0.1 * -logs.mean(dim=1).sum()
    torch.testing.assert_close(captioner(images, rows, tokens, lengths, label_smoothing=0.1), expected)


def test_weighted_captions_count_their_words_so_much_and_start_nothing() -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(**SIZES)).eval()
    images, rows, tokens, lengths = batch(captioner)
    weights = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, -3.0])
    expected = torch.zeros(())
    for row, length in enumerate(lengths.tolist()):
        logs = captioner.decoder(images, rows[row : row + 1], tokens[row : row + 1, :length], lengths[row : row + 1]).log_softmax(1)
        for place in range(1, length):
            expected = expected - weights[row] * logs[place, tokens[row, place]]
    torch.testing.assert_close(captioner(images, rows, tokens, lengths, weights=weights), expected)


def test_dropout_leaves_inputs_and_outputs_out_in_training_alone() -> None:
    torch.manual_seed(0)
    for setting in ("input_dropout", "output_dropout"):
        captioner = Captioner(DecoderConfig(**{**SIZES, setting: 0.5}))
        images, rows, tokens, lengths = batch(captioner)
        first, second = (captioner.decoder(images, rows, tokens, lengths) for _ in range(2))
        assert not torch.equal(first, second)
        captioner.eval()
        first, second = (captioner.decoder(images, rows, tokens, lengths) for _ in range(2))
        assert torch.equal(first, second)


def test_scheduled_sampling_replaces_a_fraction_of_the_words_by_likely_ones_and_never_the_start() -> None:
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(**SIZES)).eval()
    with torch.no_grad():
        lstm_of(captioner).word_scores.output.bias[7] = 50.0  # the decoder always says word 7
    images, rows, tokens, lengths = batch(captioner)
    everything = captioner.decoder.scheduled_sampling_inputs(images, rows, tokens, lengths, 1.0)
    for row, length in enumerate(lengths.tolist()):
        assert everything[row].tolist() == [1, *[7] * (length - 1), *[0] * (9 - length)]
    assert torch.equal(captioner.decoder.scheduled_sampling_inputs(images, rows, tokens, lengths, 0.0), tokens)
    many = torch.randint(8, 23, (500, 11))
    half = captioner.decoder.scheduled_sampling_inputs(images, torch.zeros(500, dtype=torch.int64), many, torch.full((500,), 11), 0.25)
    assert (half[:, 1:] == 7).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_an_ensemble_speaks_with_the_mean_of_its_members_probabilities() -> None:
    torch.manual_seed(0)
    members = [Captioner(DecoderConfig(**{**SIZES, **shape})).eval() for shape in SHAPES]
    features, words = torch.randn(3, 1, 10), torch.tensor([4, 9, 11])
    together = Ensemble(members).eval()
    spoken, _ = together.decoding_step(words, together.first_state(features))
    chances = [member.decoding_step(words, member.first_state(features))[0].softmax(1) for member in members]
    torch.testing.assert_close(spoken.exp(), torch.stack(chances).mean(dim=0))
    for row in range(3):
        one, _ = together.decoding_step(words[row : row + 1], together.first_state(features[row : row + 1]))
        torch.testing.assert_close(one, spoken[row : row + 1])


@pytest.mark.parametrize("wrong", [{"input_dropout": 1.0}, {"output_dropout": -0.1}, {"image_input": "never"}])
def test_impossible_shapes_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecoderConfig(**SIZES, **wrong)
