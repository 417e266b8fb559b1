"""Training captions -> vocabulary file: JSON, never a pickle."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.vocabulary import SPECIAL, Vocabulary, build_vocabulary, check_special
from shards.caption_table import CaptionTable, table_of_split
from shards.dataset import open_split
from shards.digests import json_digest
from shards.errors import DamageError, InputError
from shards.json_files import read_versioned_json, write_json

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class VocabularySummary:
    """A vocabulary and the share of its captions' tokens that it knows."""

    vocabulary: Vocabulary
    distinct: int
    coverage: float


def vocabulary_of(table: CaptionTable, *, min_count: int) -> VocabularySummary:
    """Count a table's tokens and keep those that occur at least ``min_count`` times.

    Raises:
        InputError: ``min_count`` below 1, or nothing to count.
    """
    if min_count < 1:
        raise InputError(f"--min-count {min_count}: must be at least 1.")
    occurrences = np.bincount(table.tokens, minlength=len(table.words))
    counts = Counter({word: int(count) for word, count in zip(table.words, occurrences, strict=True)})
    vocabulary = build_vocabulary(counts, min_count=min_count)
    if len(vocabulary) == len(SPECIAL):
        raise InputError(f"No word occurs {min_count} times in {table.captions} captions. Give a smaller --min-count.")
    known = sum(count for word, count in counts.items() if count >= min_count and word not in SPECIAL)
    return VocabularySummary(vocabulary=vocabulary, distinct=len(counts), coverage=known / counts.total())


def make_vocabulary(*, shards: Path, split: str, min_count: int, out: Path) -> VocabularySummary:
    """Write the vocabulary of a split's captions.

    Raises:
        InputError: No such dataset or split, or no words.
        DamageError: A shard is damaged.
    """
    summary = vocabulary_of(table_of_split(open_split(shards, split)), min_count=min_count)
    write_vocabulary(out, summary.vocabulary)
    return summary


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Commit a vocabulary."""
    write_json(path, {"format_version": FORMAT_VERSION, "digest": vocabulary_digest(vocabulary), "words": list(vocabulary.words)})


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """SHA-256 (hex) of the words in their order."""
    return json_digest(list(vocabulary.words))


def read_vocabulary(path: Path) -> Vocabulary:
    """Read and check a vocabulary file.

    Raises:
        InputError: Missing.
        DamageError: Not a vocabulary, or not the words that its digest is of.
        MismatchError: Another format version.
    """
    content = read_versioned_json(path, what="vocabulary file", format_version=FORMAT_VERSION)
    words = content.get("words")
    try:
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError('there is no list of texts "words"')
        check_special(words)
        vocabulary = Vocabulary(tuple(words))
        if vocabulary_digest(vocabulary) != content.get("digest"):
            raise ValueError(f"its words have digest {vocabulary_digest(vocabulary)}, it says {content.get('digest')}")
    except ValueError as error:
        raise DamageError(f"{path}: not a vocabulary ({error}). Make it again with: python cli.py vocab --out {path}") from None
    return vocabulary
