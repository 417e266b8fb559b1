import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from model.captioner import Captioner
from model.decoder_config import DecoderConfig
from model.decoding import greedy
from model.metrics import cider
from model.ptb import ptb_tokens
from model.vocabulary import Vocabulary
from pipeline.captioning.captioner import CaptionerConfig
from pipeline.captions.english import sentence
from pipeline.captions.vocabulary import vocabulary_of
from pipeline.evaluation.evaluate import EvaluationFiles, EvaluationSource, evaluate
from pipeline.evaluation.scoring import ScoringConfig
from pipeline.loading.training_data import TrainingData, feature_extractor, open_cached
from pipeline.training.distributed import ProcessGroup
from pipeline.training.validation import Validator
from shards.errors import InputError
from tests.conftest import Small

CPU = torch.device("cpu")


def opened(small: Small) -> tuple[TrainingData, Vocabulary, Captioner]:
    data = open_cached(small.features, CPU)
    torch.manual_seed(0)
    vocabulary = vocabulary_of(data.source.table, min_count=1).vocabulary
    return data, vocabulary, Captioner(DecoderConfig(feature_dim=data.feature_dim, vocabulary_size=len(vocabulary), hidden_dim=32))


def test_scores_equal_those_computed_by_hand(small: Small) -> None:
    data, vocabulary, captioner = opened(small)
    assert data.val is not None
    table = data.val.table
    measured = Validator(
        data.val, vocabulary, feature_extractor(data), data.val_pictures, images=5000, device=CPU, processes=ProcessGroup()
    ).validate(captioner)
    assert captioner.training  # restored

    captioner.eval()
    features = data.val.images(np.arange(table.images), np.zeros((table.images, 3)))
    words = greedy(captioner, features, vocabulary)
    references = [list(map(ptb_tokens, texts)) for texts in table.reference_texts()]
    assert measured.cider == cider([ptb_tokens(sentence(caption)) for caption in words], references).corpus
    losses = []
    for caption in range(table.captions):
        tokens = torch.tensor([vocabulary.encode(["<start>", *table.caption_tokens(caption), "<end>"])])
        image = captioner.project(features[table.image_rows[caption]][None])
        logits = captioner.decoder(image, torch.tensor([0]), tokens, torch.tensor([tokens.shape[1]]))
        losses.append(functional.cross_entropy(logits, tokens[0], reduction="none"))
    assert measured.loss == pytest.approx(torch.cat(losses).mean().item(), abs=1e-5)

    assert [example.caption for example in measured.examples] == [sentence(caption) for caption in words]
    assert all(example.pixels is not None and example.pixels.shape == (64, 64, 3) for example in measured.examples)
    assert measured.examples[0].reference == table.texts[0]


def test_a_diverged_training_is_reported_before_captioning(small: Small) -> None:
    data, vocabulary, captioner = opened(small)
    assert data.val is not None
    validation = Validator(data.val, vocabulary, feature_extractor(data), data.val_pictures, images=5000, device=CPU, processes=ProcessGroup())
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(InputError, match=r"loss on the val split is nan.*smaller `lr`"):
        validation.validate(captioner)


def test_the_last_validation_cider_equals_that_of_evaluate(small: Small, tmp_path: Path) -> None:
    logged = [json.loads(line) for line in (small.run / "metrics.jsonl").read_text().splitlines()]
    found = evaluate(
        CaptionerConfig(run=small.run, device="cpu"),
        EvaluationSource(features=small.features),
        scoring=ScoringConfig(java=False),
        files=EvaluationFiles(out=tmp_path / "s.json"),
    ).scores.scores["cider"]
    assert [line["val_cider"] for line in logged if "val_cider" in line][-1] == found.value


def test_validated_images_are_spread_evenly_over_the_split(small: Small) -> None:
    data, vocabulary, _ = opened(small)
    features_of = feature_extractor(data)
    validation = Validator(data.source, vocabulary, features_of, lambda rows: [None] * len(rows), images=4, device=CPU, processes=ProcessGroup())
    # 4 of 36, and the 8 examples
    assert validation.rows.tolist() == [0, 4, 9, 13, 18, 22, 27, 31]
