import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from pycocoevalcap.cider.cider import Cider
from torch.nn.utils.rnn import pad_sequence

from model.captioner import Captioner
from model.decoder_config import DecoderConfig
from model.decoders.base import ProjectedImages
from model.decoding import sample_captions
from model.ptb import ptb_tokens
from model.vocabulary import END, START, UNK, Vocabulary
from pipeline.captions.english import tokenize
from pipeline.captions.languages import language_rules
from pipeline.captions.vocabulary import vocabulary_of
from pipeline.loading.batches import EncodedCaptions, to_device, training_batches
from pipeline.loading.training_data import open_cached
from pipeline.reporting.curves import draw_curves
from pipeline.runs.run import read_config
from pipeline.runs.train_config import TrainConfig
from pipeline.training.distributed import ProcessGroup
from pipeline.training.self_critical import Reward, SelfCriticalStep, advantages
from shards.caption_table import table_from_records
from shards.errors import InputError, MismatchError
from tests.conftest import Small
from tests.pipeline.short_runs import lines, same, train_on_cpu

CPU = torch.device("cpu")
TEXTS = [["A dog runs .", "The brown dog is running, fast!"], ["A cat sleeps", "the cat's asleep ."], ["Two men on a boat", "A boat with two men ."]]
SAMPLED = [["a", "dog", "is", "running", "."], ["two", "dogs", UNK], ["a", "boat", "with", ",", "a", "boat"]]


def test_the_reward_is_cider_of_the_scored_tokens_with_the_end_token() -> None:
    records = [
        (str(row), {"image_id": row, "file_name": "x", "captions": [{"id": 0, "text": text, "tokens": tokenize(text)} for text in texts]})
        for row, texts in enumerate(TEXTS)
    ]
    table = table_from_records([records])
    vocabulary = vocabulary_of(table, min_count=1).vocabulary
    words = dict.fromkeys((*vocabulary.words, "with", "dogs", "is", ","))
    vocabulary = Vocabulary(tuple(words))
    rows = [torch.tensor(vocabulary.encode([START, *words, END])) for words in SAMPLED]
    lengths = np.array([len(row) for row in rows])
    found = Reward(table, vocabulary)(pad_sequence(rows, batch_first=True).numpy(), lengths, np.arange(3))

    references = {row: [" ".join([*ptb_tokens(text), END]) for text in texts] for row, texts in enumerate(TEXTS)}
    candidates = {row: [" ".join([word for word in words if word not in (".", ",")] + [END])] for row, words in enumerate(SAMPLED)}
    _, expected = Cider().compute_score(references, candidates)
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_reward_of_other_languages_compares_words_without_their_marks() -> None:
    rules, texts = language_rules("ko"), [["개가 뛴다.", "개는 뛴다"], ["별 두 개."]]
    records = [
        (str(row), {"image_id": row, "file_name": "x", "captions": [{"id": 0, "text": text, "tokens": rules.tokenize(text)} for text in group]})
        for row, group in enumerate(texts)
    ]
    table = table_from_records([records], language="ko")
    vocabulary = vocabulary_of(table, min_count=1).vocabulary
    sampled = [["개", "￭는", "뛴다", "."], ["별", "두", "개"]]
    rows = [torch.tensor(vocabulary.encode([START, *words, END])) for words in sampled]
    found = Reward(table, vocabulary)(pad_sequence(rows, batch_first=True).numpy(), np.array([len(row) for row in rows]), np.arange(2))
    references = {row: [" ".join([*rules.scored(text), END]) for text in group] for row, group in enumerate(texts)}
    _, expected = Cider().compute_score(references, {0: [f"개 는 뛴다 {END}"], 1: [f"별 두 개 {END}"]})
    assert found == pytest.approx(expected, abs=1e-9)


def test_advantages_compare_each_caption_with_the_others_of_its_image() -> None:
    rewards = np.random.default_rng(0).random((4, 5))
    found = advantages(rewards)
    for image in range(4):
        for sample in range(5):
            others = np.delete(rewards[image], sample)
            assert found[image, sample] == pytest.approx(rewards[image, sample] - others.mean())


def test_a_steps_gradient_is_that_of_sampled_captions_weighted_by_their_advantage(small: Small) -> None:
    data = open_cached(small.features, CPU)
    table = data.source.table
    vocabulary = vocabulary_of(table, min_count=1).vocabulary
    torch.manual_seed(0)
    captioner = Captioner(DecoderConfig(feature_dim=data.feature_dim, vocabulary_size=len(vocabulary), embedding_dim=16, hidden_dim=24))
    batch = to_device(
        next(training_batches(data.source, EncodedCaptions(table, vocabulary), seed=0, epoch=0, batch_size=7, captions_per_image=9)), CPU
    )
    assert len(batch.images) == 7
    reward = Reward(table, vocabulary)
    step = SelfCriticalStep(captioner, captioner, lambda batch: batch.images, TrainConfig(precision="fp32", samples=4), ProcessGroup(), reward)
    torch.manual_seed(5)
    value = step(batch)
    gradients = [parameter.grad.clone() for parameter in captioner.parameters() if parameter.grad is not None]

    captioner.zero_grad()
    images = captioner.project(batch.images)
    owners = torch.arange(7).repeat_interleave(4)
    torch.manual_seed(5)
    tokens, lengths = sample_captions(captioner.decoder, images, owners, vocabulary)
    rows = np.array([table.image_rows[batch.captions[(batch.unit_rows == unit).nonzero()[0, 0]]] for unit in range(7)])
    rewards = reward(tokens.numpy(), lengths.numpy(), rows[owners.numpy()])
    gains = advantages(rewards.reshape(7, 4)).ravel()
    total = torch.zeros(())
    for row, length in enumerate(lengths.tolist()):
        state = captioner.decoder.first_state(ProjectedImages(images.values[owners[row]][None]))
        for place in range(1, length):
            logits, state = captioner.decoding_step(tokens[row, place - 1][None], state)
            total = total - float(gains[row]) * logits.log_softmax(1)[0, tokens[row, place]]
    torch.autograd.backward(total / (lengths - 1).sum())
    assert float(value) == pytest.approx(-rewards.mean(), abs=1e-6)
    expected = [parameter.grad for parameter in captioner.parameters() if parameter.grad is not None]
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)


def test_rewards_rise_and_a_stopped_training_resumes_bit_for_bit(small: Small, tmp_path: Path) -> None:
    settings = {"self_critical": True, "epochs": 5, "batch_size": 6, "lr": 1e-2, "schedule": "constant", "log_every": 1, "input_dropout": 0.0}

    def trained(name: str, **more: object) -> Path:
        train_on_cpu(out=tmp_path / name, features=small.features, settings=settings, init_from=small.run, **more)  # type: ignore[arg-type]
        return tmp_path / name

    uninterrupted = trained("uninterrupted")
    rewards = [-line["loss"] for line in lines(uninterrupted) if "loss" in line]
    assert len(rewards) == 30  # each image once in an epoch
    assert np.mean(rewards[-6:]) > np.mean(rewards[:6]) + 0.1

    (curves,) = draw_curves([uninterrupted], tmp_path / "curves.png")
    assert [line["reward"] for line in curves.training] == rewards
    assert (tmp_path / "curves.png").stat().st_size > 10_000

    trained("parts", max_steps=5)
    train_on_cpu(out=tmp_path / "parts", resume=True)
    assert lines(tmp_path / "parts") == lines(uninterrupted)
    same(tmp_path / "parts", uninterrupted)


def test_a_run_records_its_initial_run_and_has_its_vocabulary(small: Small, tmp_path: Path) -> None:
    train_on_cpu(out=tmp_path / "run", features=small.features, settings={"self_critical": True}, init_from=small.run, max_steps=1)
    (config, vocabulary), (before, words) = read_config(tmp_path / "run"), read_config(small.run)
    assert config.start is not None
    assert config.start["run"] == str(small.run.resolve())
    assert len(config.start["sha256"]) == 64
    assert vocabulary == words
    assert replace(config.decoder, feature_dropout=0.0, input_dropout=0.0, output_dropout=0.0) == before.decoder  # the recipe sets its own dropout


def test_self_critical_training_without_an_initial_run_is_refused(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    with pytest.raises(InputError, match="`self_critical` needs a trained captioner"):
        train_on_cpu(out=tmp_path / "a", features=small.features, settings={"self_critical": True})
    with pytest.raises(MismatchError, match="`hidden_dim` 99"):
        train_on_cpu(out=tmp_path / "b", features=small.features, settings={"hidden_dim": 99}, init_from=small.run)
    train_on_cpu(out=tmp_path / "c", features=small.features, settings={"self_critical": True}, init_from=small.run, max_steps=1)
    shutil.copytree(small.run, tmp_path / "other")
    with pytest.raises(MismatchError, match="`from`"):
        train_on_cpu(out=tmp_path / "c", init_from=tmp_path / "other", resume=True)
    result = run_cli("train", "--features", small.features, "--out", tmp_path / "d", "--self-critical", "--from", tmp_path / "none")
    assert result.exit_code == 1
    assert "none: no such run" in result.output
    config = json.loads((small.run / "config.json").read_text())
    config["network"]["weights_sha256"] = "1" * 64
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(MismatchError, match="digest of the backbone's weights"):
        train_on_cpu(out=tmp_path / "e", features=small.features, init_from=tmp_path / "other")


def test_a_run_killed_before_its_first_checkpoint_starts_again_from_the_same_weights(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.run, tmp_path / "start")
    for name in ("uninterrupted", "killed"):
        settings = {"self_critical": True, "batch_size": 12, "epochs": 1}
        train_on_cpu(out=tmp_path / name, features=small.features, settings=settings, init_from=tmp_path / "start")
    shutil.rmtree(tmp_path / "killed" / "checkpoints")
    train_on_cpu(out=tmp_path / "killed", resume=True)
    same(tmp_path / "killed", tmp_path / "uninterrupted")

    shutil.rmtree(tmp_path / "killed" / "checkpoints")
    recorded = read_config(tmp_path / "killed")[0].start
    assert recorded is not None
    (tmp_path / "start" / "checkpoints" / recorded["checkpoint"] / "model.safetensors").write_bytes(b"others")
    with pytest.raises(MismatchError, match=rf"no checkpoint yet.*{recorded['checkpoint']}.*has SHA-256"):
        train_on_cpu(out=tmp_path / "killed", resume=True)
