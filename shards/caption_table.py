"""All captions of a split as flat arrays, from which training gathers its batches, whether they come from shards or from a feature file."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.dataset import Split
from shards.tar import read_records


@dataclass(frozen=True, kw_only=True)
class CaptionTable:
    """Images and captions in order. Caption c belongs to image ``image_rows[c]`` and its tokens are
    ``words[tokens[offsets[c]:offsets[c + 1]]]``. The captions of one image are adjacent, in the order of the images.

    Attributes:
        keys: Sample keys, one per image.
        image_ids: int64 (images,).
        file_names: One per image.
        shard_images: int64 (shards,): images in each shard; the order of an epoch depends on it.
        words: Unique tokens, in order of first occurrence.
        tokens: int32 (tokens,): indices into ``words``.
        offsets: int64 (captions + 1,).
        image_rows: int32 (captions,).
        caption_ids: int64 (captions,).
        texts: The captions as written, before tokenization.
        language: Their language, a BCP 47 tag. It decides how tokens are joined.
    """

    keys: tuple[str, ...]
    image_ids: NDArray[np.int64]
    file_names: tuple[str, ...]
    shard_images: NDArray[np.int64]
    words: tuple[str, ...]
    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    image_rows: NDArray[np.int32]
    caption_ids: NDArray[np.int64]
    texts: tuple[str, ...]
    language: str

    @property
    def images(self) -> int:
        return len(self.keys)

    @property
    def captions(self) -> int:
        return len(self.caption_ids)

    @functools.cached_property
    def shard_rows(self) -> NDArray[np.int64]:
        """int64 (images,): the shard of each image."""
        return np.repeat(np.arange(len(self.shard_images)), self.shard_images)

    @functools.cached_property
    def caption_counts(self) -> NDArray[np.int64]:
        """int64 (images,): how many captions each image has."""
        return np.bincount(self.image_rows, minlength=self.images).astype(np.int64)

    def caption_tokens(self, caption: int) -> list[str]:
        """Token strings of one caption."""
        return [self.words[i] for i in self.tokens[self.offsets[caption] : self.offsets[caption + 1]]]

    def reference_texts(self, rows: Iterable[int] | None = None) -> list[tuple[str, ...]]:
        """The captions as written, for each image or for the images at ``rows``."""
        ends = np.cumsum(self.caption_counts)
        chosen = range(self.images) if rows is None else rows
        return [self.texts[ends[row] - self.caption_counts[row] : ends[row]] for row in chosen]

    def check(self) -> None:
        """Raise ValueError unless the arrays are consistent (for content that comes from a file)."""
        images, captions = self.images, self.captions
        if not (len(self.image_ids) == len(self.file_names) == images and len(self.image_rows) == len(self.texts) == captions):
            raise ValueError("columns of different lengths")
        if len(self.offsets) != captions + 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens):
            raise ValueError("offsets do not span the tokens")
        if (np.diff(self.offsets) < 0).any() or (np.diff(self.image_rows) < 0).any():
            raise ValueError("offsets or image rows out of order")
        if len(self.tokens) and not (self.tokens.min() >= 0 and self.tokens.max() < len(self.words)):
            raise ValueError("a token index outside the words")
        if captions and not (self.image_rows[0] >= 0 and self.image_rows[-1] < images):
            raise ValueError("a caption without an image")
        if (self.shard_images < 0).any() or int(self.shard_images.sum()) != images:
            raise ValueError("shard sizes do not add up to the images")


def table_from_records(shards: Iterable[Iterable[tuple[str, dict[str, Any]]]], *, language: str = "en") -> CaptionTable:
    """Build a table from (key, JSON record) pairs, grouped by shard."""
    keys: list[str] = []
    image_ids: list[int] = []
    file_names: list[str] = []
    shard_images: list[int] = []
    word_rows: dict[str, int] = {}
    tokens: list[int] = []
    offsets: list[int] = [0]
    image_rows: list[int] = []
    caption_ids: list[int] = []
    texts: list[str] = []
    for records in shards:
        before = len(keys)
        for key, record in records:
            for caption in record["captions"]:
                tokens.extend(word_rows.setdefault(token, len(word_rows)) for token in caption["tokens"])
                offsets.append(len(tokens))
                image_rows.append(len(keys))
                caption_ids.append(caption["id"])
                texts.append(caption["text"])
            keys.append(key)
            image_ids.append(record["image_id"])
            file_names.append(record["file_name"])
        shard_images.append(len(keys) - before)
    return CaptionTable(
        keys=tuple(keys),
        image_ids=np.array(image_ids, dtype=np.int64),
        file_names=tuple(file_names),
        shard_images=np.array(shard_images, dtype=np.int64),
        words=tuple(word_rows),
        tokens=np.array(tokens, dtype=np.int32),
        offsets=np.array(offsets, dtype=np.int64),
        image_rows=np.array(image_rows, dtype=np.int32),
        caption_ids=np.array(caption_ids, dtype=np.int64),
        texts=tuple(texts),
        language=language,
    )


def table_of_split(split: Split) -> CaptionTable:
    """Read all captions of a split from its tars, without the images.

    Raises:
        DamageError: A record is not what its sidecar lists.
    """
    records = (((sample.key, record) for sample, record in read_records(shard)) for shard in split.shards)
    return table_from_records(records, language=split.language)
