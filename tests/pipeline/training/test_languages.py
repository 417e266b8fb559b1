"""A run knows the language of its captions: what is in another one is refused, and its captions are joined and scored as its language is."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.captioning.captioner import CaptionerConfig
from pipeline.captions.languages import language_rules
from pipeline.captions.vocabulary import read_vocabulary, vocabulary_of, write_vocabulary
from pipeline.evaluation.evaluate import EvaluationSource, evaluate
from pipeline.evaluation.scoring import ScoringConfig
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.train import train
from shards.caption_table import table_from_records
from shards.errors import DamageError, MismatchError
from shards.feature_writer import write_features
from shards.features import feature_path, open_features
from tests.conftest import TINY_MODEL, Small

SETTINGS = {**TINY_MODEL, "epochs": 1}
CPU = RuntimeConfig(device="cpu")


def korean_features(small: Small, out: Path) -> Path:
    """The features of the small dataset, with two Korean captions for each image."""
    out.mkdir()
    for split in ("train", "val"):
        file = open_features(feature_path(small.features, split))
        texts = ["빨간 별 한 개가 있다.", "이 그림에는 파란 원 두 개가 보인다."]
        captions = [{"id": number, "text": text, "tokens": language_rules("ko").tokenize(text)} for number, text in enumerate(texts)]
        records = [(key, {"image_id": row, "file_name": "x.jpg", "captions": captions}) for row, key in enumerate(file.table.keys)]
        chunk = (file.features, table_from_records([records], language="ko"))
        provenance = replace(file.provenance, language="ko")
        write_features(feature_path(out, split), lambda chunk=chunk: [chunk], shape=(1, file.dim), provenance=provenance)  # type: ignore[misc]
    (out / "backbone.safetensors").write_bytes((small.features / "backbone.safetensors").read_bytes())
    return out


def test_a_runs_language_is_that_of_its_data_and_decides_how_captions_are_joined_and_scored(small: Small, tmp_path: Path) -> None:
    features = korean_features(small, tmp_path / "features")
    train(out=tmp_path / "run", data=DataConfig(features=features), settings={**SETTINGS, "epochs": 8, "lr": 0.02}, runtime=CPU)
    assert read_vocabulary(tmp_path / "run/vocab.json").language == "ko"
    found = evaluate(CaptionerConfig(run=tmp_path / "run", device="cpu"), EvaluationSource(features=features), scoring=ScoringConfig(java=False))
    assert {caption for _, _, caption in found.captions} <= {"빨간 별 한 개가 있다.", "이 그림에는 파란 원 두 개가 보인다."}
    assert found.scores.scores["bleu_4"].value == pytest.approx(1, abs=1e-3)
    with pytest.raises(MismatchError, match="the references have another language: expected ko, found en"):
        evaluate(CaptionerConfig(run=tmp_path / "run", device="cpu"), EvaluationSource(features=small.features))


def test_a_vocabulary_of_another_language_is_refused(small: Small, tmp_path: Path) -> None:
    table = open_features(feature_path(small.features, "train")).table
    write_vocabulary(tmp_path / "vocab.json", replace(vocabulary_of(table, min_count=1).vocabulary, language="ko"))
    with pytest.raises(MismatchError, match="the captions are in another language: expected ko, found en"):
        train(out=tmp_path / "run", data=DataConfig(features=small.features, vocab=tmp_path / "vocab.json"), settings=SETTINGS, runtime=CPU)


def test_a_vocabulary_with_a_changed_language_is_refused(small: Small, tmp_path: Path) -> None:
    text = (small.run / "vocab.json").read_text()
    for changed in ('"ko"', '"no tag"', "7"):
        (tmp_path / "vocab.json").write_text(text.replace('"language": "en"', f'"language": {changed}'))
        with pytest.raises(DamageError, match="not a vocabulary file"):
            read_vocabulary(tmp_path / "vocab.json")
