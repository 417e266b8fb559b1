"""What benchmarks of the decoder train on where no real features are at hand: generated ones, beside captions of COCO's vocabulary size."""

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.workload import say
from model.vocabulary import Vocabulary
from pipeline.backbone.backbones import IMPORTED
from pipeline.captions.vocabulary import vocabulary_of, write_vocabulary
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.train import train
from shards.caption_table import CaptionTable
from shards.feature_writer import write_features
from shards.features import Provenance, feature_path

# Of COCO's training captions at the tutorial's threshold of 4.
WORDS = 9_956


def write_words(path: Path, table: CaptionTable, *, min_count: int = 4) -> Vocabulary:
    """Commit a vocabulary of :data:`WORDS` words: a table's own, and as many that never occur as are missing."""
    known = vocabulary_of(table, min_count=min_count).vocabulary.words
    vocabulary = Vocabulary((*known, *(f"filler{number}" for number in range(WORDS - len(known)))))
    write_vocabulary(path, vocabulary)
    return vocabulary


def write_generated(folder: Path, features: NDArray[np.float16], table: CaptionTable) -> None:
    """Commit ``folder/train.h5`` with features that no network made, float16 (images, dim), and the captions of ``table``."""
    folder.mkdir(exist_ok=True)
    provenance = Provenance(
        backbone=IMPORTED,
        weights=IMPORTED,
        weights_sha256="0" * 64,
        preprocessing=None,
        views=("center",),
        precision="unknown",
        arithmetic={},
        split="train",
        split_digest="0" * 64,
        versions={},
    )
    write_features(feature_path(folder, "train"), lambda: [(features[:, None], table)], dim=features.shape[1], provenance=provenance)


def train_a_little(folder: Path, table: CaptionTable, *, dim: int, steps: int, device: str) -> NDArray[np.float16]:
    """Train ``folder/run``, a captioner of the tutorial's sizes, so that its captions have realistic lengths; gives its features (images, dim)."""
    features = np.random.default_rng(0).standard_normal((table.images, dim)).astype(np.float16)
    write_words(folder / "vocab.json", table)
    write_generated(folder / "features", features, table)
    say(f"training {steps} steps on real captions")
    data = DataConfig(features=folder / "features", vocab=folder / "vocab.json")
    train(out=folder / "run", data=data, max_steps=steps, runtime=RuntimeConfig(device=device))
    return features


def synchronized(device: torch.device) -> float:
    """Seconds, when the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
