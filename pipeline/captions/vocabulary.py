"""The vocabulary of the training captions, and its file in JSON."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.vocabulary import SPECIAL, Vocabulary, build_vocabulary, check_special
from pipeline.captions.languages import language_tag
from shards.atomic import check_output_file
from shards.caption_table import CaptionTable, table_of_split
from shards.dataset import open_split
from shards.digests import json_digest
from shards.errors import DamageError, InputError, SettingsError
from shards.json_files import read_versioned_json, write_json
from shards.paths import shell_quoted

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class VocabularySummary:
    """A vocabulary, and how well it covers the captions that it was made from.

    Attributes:
        distinct: The number of distinct words in the captions.
        coverage: The fraction of the captions' tokens that are in the vocabulary.
    """

    vocabulary: Vocabulary
    distinct: int
    coverage: float


def vocabulary_of(table: CaptionTable, *, min_count: int) -> VocabularySummary:
    """The vocabulary of the words that occur at least ``min_count`` times in a table's captions.

    Raises:
        InputError: ``min_count`` is below 1, or no word occurs so often.
    """
    if min_count < 1:
        raise SettingsError(f"`min_count` {min_count}: must be at least 1.")
    occurrences = np.bincount(table.tokens, minlength=len(table.words))
    counts = Counter({word: int(count) for word, count in zip(table.words, occurrences, strict=True)})
    vocabulary = build_vocabulary(counts, min_count=min_count, language=table.language)
    if len(vocabulary) == len(SPECIAL):
        raise InputError(f"No word occurs {min_count} times in {table.captions} captions. Choose a smaller `min_count`.")
    known = sum(count for word, count in counts.items() if count >= min_count and word not in SPECIAL)
    return VocabularySummary(vocabulary=vocabulary, distinct=len(counts), coverage=known / counts.total())


def make_vocabulary(*, shards: Path, split: str, min_count: int, out: Path) -> VocabularySummary:
    """Write the vocabulary of a split's captions.

    Raises:
        InputError: No such dataset or split, or no word occurs often enough.
        DamageError: A shard is damaged.
        ResourceError: The file cannot be written.
    """
    check_output_file(out)
    summary = vocabulary_of(table_of_split(open_split(shards, split)), min_count=min_count)
    write_vocabulary(out, summary.vocabulary)
    return summary


def write_vocabulary(path: Path, vocabulary: Vocabulary) -> None:
    """Commit a vocabulary."""
    content = {"format_version": FORMAT_VERSION, "digest": vocabulary_digest(vocabulary), "language": vocabulary.language}
    write_json(path, {**content, "words": list(vocabulary.words)})


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """SHA-256 (hex) of the language and the words in order."""
    return json_digest([vocabulary.language, list(vocabulary.words)])


def read_vocabulary(path: Path) -> Vocabulary:
    """Read and check a vocabulary file.

    Raises:
        InputError: It is missing.
        DamageError: It is not a vocabulary file, or its words do not match its digest.
        MismatchError: It has another format version.
    """
    content = read_versioned_json(path, what="vocabulary file", format_version=FORMAT_VERSION)
    words = content.get("words")
    try:
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError('it has no list of strings "words"')
        check_special(words)
        vocabulary = Vocabulary(tuple(words), language_tag(str(content.get("language"))))
        if vocabulary_digest(vocabulary) != content.get("digest"):
            raise ValueError(f"its words have digest {vocabulary_digest(vocabulary)}, but the file says {content.get('digest')}")
    except (ValueError, InputError) as error:
        raise DamageError(f"{path}: not a vocabulary file ({error}). Make it again with: python cli.py vocab --out {shell_quoted(path)}") from None
    return vocabulary
