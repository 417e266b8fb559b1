import json
from pathlib import Path

import pytest

from model.metrics import score_captions
from pipeline.evaluate import evaluate
from shards.errors import InputError, MismatchError
from shards.features import open_features
from tests.conftest import Small


def test_scores_and_captions_are_written_and_agree(small: Small, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    result = evaluate(run=small.run, features=small.features, out=out, device="cpu")
    written = json.loads(out.read_text())
    assert set(written) == {"scores", "captions"}
    assert set(written["scores"]) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}
    table = open_features(small.features / "val.h5").table
    assert [c["image_id"] for c in written["captions"]] == table.image_ids.tolist()
    words = [c["caption"].split() for c in written["captions"]]
    assert written["scores"] == score_captions(words, table.references()) == result.scores


def test_raw_and_cached_evaluation_agree_and_batch_size_changes_nothing(small: Small) -> None:
    cached = evaluate(run=small.run, features=small.features, split="train", device="cpu")
    assert evaluate(run=small.run, features=small.features, split="train", device="cpu", batch_size=1) == cached
    raw = evaluate(run=small.run, shards=small.shards, split="train", device="cpu")
    same = sum(a == b for a, b in zip(raw.captions, cached.captions, strict=True))
    assert same >= 0.9 * len(cached.captions)  # batches of another size round differently


def test_features_of_another_network_are_refused_with_both_sides(small: Small, tmp_path: Path) -> None:
    from pipeline.cache_features import cache_features

    cache_features(shards=small.shards, out=tmp_path / "other", splits=["val"], backbone="squeezenet1_1", weights="random", device="cpu")
    with pytest.raises(MismatchError, match=r"resnet18.*squeezenet1_1"):
        evaluate(run=small.run, features=tmp_path / "other", device="cpu")


def test_what_is_missing_is_named(small: Small, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run"):
        evaluate(run=tmp_path, features=small.features, device="cpu")
    with pytest.raises(InputError, match=r"test\.h5: no such feature file"):
        evaluate(run=small.run, features=small.features, split="test", device="cpu")
    with pytest.raises(InputError, match="one of --features"):
        evaluate(run=small.run, device="cpu")
