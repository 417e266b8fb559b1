"""Generated features and a vocabulary of COCO's size: training data for benchmarks of the decoder that need no real features."""

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

# The vocabulary of COCO's training captions with the tutorial's threshold of 4.
WORDS = 9_956


def write_words(path: Path, table: CaptionTable, *, min_count: int = 4) -> Vocabulary:
    """Commit a vocabulary of :data:`WORDS` words: the table's words, filled up with words that never occur."""
    known = vocabulary_of(table, min_count=min_count).vocabulary.words
    vocabulary = Vocabulary((*known, *(f"filler{number}" for number in range(WORDS - len(known)))))
    write_vocabulary(path, vocabulary)
    return vocabulary


def write_generated(folder: Path, features: NDArray[np.float16], table: CaptionTable) -> None:
    """Commit ``folder/train.h5`` with generated features, float16 (images, dim), and the captions of ``table``."""
    folder.mkdir(exist_ok=True)
    provenance = Provenance(
        backbone=IMPORTED,
        weights=IMPORTED,
        weights_sha256="0" * 64,
        preprocessing=None,
        layout="pooled",
        mean_is_pooled=True,
        views=("center",),
        precision="unknown",
        arithmetic={},
        split="train",
        language="en",
        split_digest="0" * 64,
        versions={},
    )
    write_features(feature_path(folder, "train"), lambda: [(features[:, None, None], table)], shape=(1, features.shape[1]), provenance=provenance)


def train_a_little(folder: Path, table: CaptionTable, *, dim: int, steps: int, device: str) -> NDArray[np.float16]:
    """Train a captioner of the tutorial's sizes in ``folder/run`` until its captions have realistic lengths; return its features (images, dim)."""
    features = np.random.default_rng(0).standard_normal((table.images, dim)).astype(np.float16)
    write_words(folder / "vocab.json", table)
    write_generated(folder / "features", features, table)
    say(f"training {steps} steps on real captions")
    data = DataConfig(features=folder / "features", vocab=folder / "vocab.json")
    train(out=folder / "run", data=data, max_steps=steps, runtime=RuntimeConfig(device=device))
    return features


def synchronized(device: torch.device) -> float:
    """The time in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
