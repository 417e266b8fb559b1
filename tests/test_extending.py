"""What users can add without changing the package: one function per kind of thing that has a registry."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from safetensors.torch import load_file
from torch import nn

from model.backbone_sources import BACKBONE_SOURCES, BackboneSource, PooledHead
from model.decoder_config import DECODERS
from pipeline.backbone.backbones import list_backbones
from pipeline.captions.formats import CAPTION_FORMATS, CaptionFormat, CaptionInput
from pipeline.captions.languages import LANGUAGES, Language, language_rules
from pipeline.captions.read import CaptionSource, read_splits
from pipeline.captions.records import CaptionFile, CaptionRow, file_of_rows
from pipeline.console.command_table import COMMANDS
from pipeline.evaluation.measurement import Measurement, Metric, TokenizedCaptions
from pipeline.evaluation.metrics import METRICS
from pipeline.evaluation.score_file import write_scores
from pipeline.evaluation.scoring import Prediction, ScoringConfig, score_texts
from pipeline.features.cache_features import CacheConfig, cache_features
from pipeline.runs.checkpoints import latest_checkpoint
from shards.features import open_features
from tests.conftest import Small

TOY_COMMAND = """
import click
from pipeline.console.command import command
from pipeline.console.options import workers_option
from pipeline.execution.messages import print_next_step, print_result
from shards.errors import InputError

@command("toy", "python cli.py toy 3")
@click.argument("number", type=int)
@click.option("--most", type=int, default=5, help="Highest number.")
@workers_option
def toy(number: int, most: int, workers: int) -> None:
    '''Double a number.'''
    if number > most:
        raise InputError(f"NUMBER {number}: must be at most `most` {most}.")
    print_result(f"{2 * number} with {workers} workers")
    print_next_step("python cli.py doctor")
"""


def test_a_toy_command_is_added_through_the_registry(run_cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_command.py").write_text(TOY_COMMAND)
    (tmp_path / "settings.toml").write_text("[toy]\nworkers = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    COMMANDS.register("toy", "toy_command:toy")
    try:
        listing, helped = run_cli("--help"), run_cli("toy", "--help")
        good, bad = run_cli("--config", tmp_path / "settings.toml", "toy", 3), run_cli("toy", 6)
    finally:
        COMMANDS.unregister("toy")
    assert "Double a number." in listing.output.splitlines()[-1]
    assert "python cli.py toy 3" in helped.output
    assert good.output.splitlines() == ["6 with 3 workers", "Next: python cli.py doctor"]
    assert (bad.exit_code, bad.output) == (1, "Error: NUMBER 6: must be at most --most 5.\n")
    assert run_cli("toy", 3).exit_code == 2


TOY_DECODER = """
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from model.decoders.base import Decoder

@dataclass(frozen=True)
class ToyState:
    images: torch.Tensor

    def select(self, rows):
        return ToyState(self.images[rows])

class ToyDecoder(Decoder):
    '''Scores the next word by the image and the word before it, and remembers nothing.'''

    pooled = True

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding_dim)
        self.output = nn.Linear(config.embedding_dim, config.vocabulary_size)

    def forward(self, images, image_rows, tokens, caption_lengths):
        before = self.embedding(tokens[:, :-1]) + images.values[image_rows]
        return self.output(pack_padded_sequence(before, caption_lengths - 1, batch_first=True).data)

    def first_state(self, images):
        return ToyState(images.values.squeeze(1))

    def decoding_step(self, words, state):
        return self.output(self.embedding(words) + state.images), state
"""


def test_a_toy_decoder_is_added_through_the_registry(
    run_cli: Callable[..., Result], small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_decoder.py").write_text(TOY_DECODER)
    monkeypatch.syspath_prepend(tmp_path)
    run, image = tmp_path / "run", small.source / "images/scene_000000.jpg"
    train = ["train", "--features", small.features, "--out", run, "--decoder", "toy", "--epochs", 1, "--batch-size", 16, "--min-count", 1]
    unknown = run_cli(*train)
    DECODERS.register("toy", "toy_decoder:ToyDecoder")
    try:
        trained, resumed = run_cli(*train, "--scheduled-sampling", 0.2), run_cli("train", "--out", run, "--resume", "--epochs", 2)
        captioned = run_cli("caption", "--run", run, image, "--beam", 2, "--best", 2)
        with_another = run_cli("caption", "--run", run, "--run", run, image)
        weights = load_file(latest_checkpoint(run)[0] / "model.safetensors")
    finally:
        DECODERS.unregister("toy")
    assert "--decoder toy: There is no decoder 'toy'. Choose one of: lstm, attention, transformer." in " ".join(unknown.stderr.split())
    assert [result.exit_code for result in (trained, resumed, captioned, with_another)] == [0] * 4
    assert len(captioned.stdout.splitlines()) == 2
    assert {"decoder.embedding.weight", "decoder.output.weight"} <= weights.keys()
    assert not any("lstm" in name for name in weights)


def test_a_toy_caption_form_is_added_through_the_registry(tmp_path: Path) -> None:
    def read(file: CaptionInput) -> CaptionFile:
        rows = (line.split(" -> ") for line in file.path.read_text().splitlines()[1:])
        return file_of_rows(CaptionRow(file_name=name, captions=(caption,)) for name, caption in rows)

    toy = CaptionFormat(description="#toy, then lines of NAME -> CAPTION", matches=lambda file: file.first_line == "#toy", read=read)
    (tmp_path / "captions.toy").write_text("#toy\na.jpg -> A dog.\nb.jpg -> A cat.\na.jpg -> A dog runs.\n")
    CAPTION_FORMATS.register("toy", toy)
    try:
        records = read_splits(CaptionSource(paths=(tmp_path / "captions.toy",)))["train"].records
    finally:
        CAPTION_FORMATS.unregister("toy")
    assert [(record.file_name, [caption.text for caption in record.captions]) for record in records] == [
        ("a.jpg", ["A dog.", "A dog runs."]),
        ("b.jpg", ["A cat."]),
    ]


def test_a_toy_language_is_added_through_the_registry(run_cli: Callable[..., Result], small: Small, tmp_path: Path) -> None:
    def letters(text: str) -> list[str]:
        return [letter for letter in text.lower() if letter.isalpha()]

    toy = Language(
        rule="letters", tokenize=letters, join="".join, scored=letters, scored_word=str, scored_rule="letters", packages=(), extra="", english=False
    )
    LANGUAGES.register("qtx", toy)
    options = ["--images", small.source / "images", "--captions", small.source / "captions_val.json", "--size", 64, "--workers", 1]
    try:
        made = run_cli("shard", *options, "--out", tmp_path / "shards", "--language", "qtx")
        other = run_cli("shard", *options, "--out", tmp_path / "shards", "--split", "val")
        counted = run_cli("vocab", "--shards", tmp_path / "shards", "--min-count", 1, "--out", tmp_path / "vocab.json")
    finally:
        LANGUAGES.unregister("qtx")
        language_rules.cache_clear()
    assert (made.exit_code, counted.exit_code, other.exit_code) == (0, 0, 1)
    assert "language was 'qtx' and is 'en' now" in other.stderr
    written = json.loads((tmp_path / "vocab.json").read_text())
    assert written["language"] == "qtx"
    assert all(len(word) == 1 for word in written["words"][4:])


def test_a_toy_metric_is_added_through_the_registry(tmp_path: Path) -> None:
    def names_a_dog(captions: TokenizedCaptions) -> Measurement:
        return Measurement(images=np.array([float("dog" in tokens) for tokens in captions.candidates]))

    images = [
        Prediction(image_id=number, file_name="", caption=caption, references=("A dog runs.", "a dog"))
        for number, caption in enumerate(("a dog runs", "a cat"))
    ]
    METRICS.register("names_a_dog", Metric(label="Names a dog", measure=names_a_dog, share=True))
    try:
        write_scores(tmp_path / "s.json", score_texts(images, split="val", made_by={}, scoring=ScoringConfig(java=False)))
    finally:
        METRICS.unregister("names_a_dog")
    content = json.loads((tmp_path / "s.json").read_text())
    before = [name for name, metric in METRICS.items() if not metric.java_files and name != "novel"]
    assert list(content["scores"]) == [*before, "names_a_dog"]
    assert content["scores"]["names_a_dog"] == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert [image["scores"]["names_a_dog"] for image in content["images"]] == [1.0, 0.0]


class Toy(BackboneSource):
    """A source of one small network."""

    def names(self) -> list[str]:
        return ["toy"]

    def build(self, backbone: str, crop: int) -> nn.Module:
        del backbone, crop
        return nn.Sequential(nn.Conv2d(3, 8, kernel_size=3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), PooledHead())


def test_a_toy_backbone_is_added_through_the_registry(small: Small, tmp_path: Path) -> None:
    BACKBONE_SOURCES.register("toy", Toy())
    try:
        assert list(list_backbones("toy")) == [("toy", 8, 3 * 8 * 9 + 8 + 2 * 8, [])]
        config = CacheConfig(splits=["val"], backbone="toy", weights="random", device="cpu")
        cache_features(shards=small.shards, out=tmp_path / "features", config=config)
    finally:
        BACKBONE_SOURCES.unregister("toy")
    file = open_features(tmp_path / "features" / "val.h5")
    assert file.provenance.backbone == "toy"
    assert file.mean_view(0, 4).shape == (4, 1, 8)
    assert np.isfinite(file.mean_view(0, 4)).all()
