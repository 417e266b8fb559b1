"""Captions -> records: which images there are, and what was said about each. The JSON forms with ids of their own: COCO's and Karpathy's.

Every form (:mod:`pipeline.captions.read` knows them all) ends in the same records of :class:`CaptionedImage`; whatever cannot be used
becomes a :class:`Reject`, never silence.
"""

import contextlib
import gc
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.captions.tokenizer import tokenize
from shards.errors import InputError
from shards.paths import is_inside
from shards.rejects import Reject

FORMS = (
    'COCO caption JSON ("images" and "annotations"); a Karpathy split file ("images" with "sentences"); a token file (NAME#0, a tab, a caption); '
    "CSV, TSV, JSON lines, a JSON list or Parquet with columns of images and captions; a folder of images beside .txt files"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One caption as it was written: ``id`` is unique in its annotation file."""

    id: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedImage:
    """One image and all its captions, at least one; ``file_name`` is relative to the images' folder."""

    image_id: int
    file_name: str
    captions: tuple[Caption, ...]

    def tokenized(self) -> list[dict[str, Any]]:
        """The captions as an image's record has them: ``id``, ``text``, ``tokens``."""
        return [{"id": caption.id, "text": caption.text, "tokens": tokenize(caption.text)} for caption in self.captions]


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedImage:
    """An image as a captions file lists it, whether it can be used or not.

    Attributes:
        imgid: Its place in the whole file: what matrices of features are ordered by.
    """

    image_id: int
    imgid: int
    file_name: str


@dataclass(frozen=True, kw_only=True)
class CaptionFile:
    """What a captions file holds.

    Attributes:
        splits: By name, the images that can be used, in the file's order; a split may have none. The name is None where the file names none.
        rejects: By split, what cannot be used; by None, what has no split.
        listed: All images, but for repeated ones.
    """

    splits: dict[str | None, list[CaptionedImage]]
    rejects: dict[str | None, list[Reject]]
    listed: tuple[ListedImage, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one place of a file without ids says: captions of an image."""

    file_name: str
    captions: tuple[str, ...]
    split: str | None = None


def gather(rows: Iterable[Row | Reject]) -> CaptionFile:
    """Rows, several for an image perhaps, -> its images in the order of their first rows.

    An image's id is its place among the images, from 0, whether it can be used or not; a caption's id its place among the captions. An
    image belongs to the split of its first row; rows of it in another split are rejects.
    """
    images: dict[str, tuple[int, str | None, list[Caption]]] = {}
    splits: dict[str | None, list[CaptionedImage]] = {}
    rejects: dict[str | None, list[Reject]] = {}
    counted = itertools.count()
    for row in rows:
        if isinstance(row, Reject):
            rejects.setdefault(None, []).append(row)
            continue
        _, split, captions = images.setdefault(row.file_name, (len(images), row.split, []))
        left_out = rejects.setdefault(row.split, [])
        if row.split != split:
            left_out.append(_reject(row.file_name, "other_split", f"also a row of split {row.split}; the first one, {split}, is kept"))
            continue
        for text in row.captions:
            caption = Caption(id=next(counted), text=storable(text))
            if caption.text.strip():
                captions.append(caption)
            else:
                left_out.append(_reject(row.file_name, "empty_caption", f"caption {caption.id} holds no text"))
    for file_name, (image_id, split, captions) in images.items():
        record = _usable(image_id, file_name, captions, rejects.setdefault(split, []))
        splits.setdefault(split, []).extend(record)
    listed = tuple(ListedImage(image_id=image_id, imgid=image_id, file_name=name) for name, (image_id, _, _) in images.items())
    return CaptionFile(splits=splits, rejects=rejects, listed=listed)


def _usable(image_id: int, file_name: str, captions: Iterable[Caption], rejects: list[Reject]) -> list[CaptionedImage]:
    """The image's record, if it can be used; else a reject."""
    captions = tuple(captions)
    if not captions:
        rejects.append(_reject(file_name, "no_captions", f"image {image_id} has no usable caption"))
    elif not is_inside(file_name):
        rejects.append(_reject(file_name, "path_escape", "the file name leads out of the images' folder"))
    else:
        return [CaptionedImage(image_id=image_id, file_name=file_name, captions=captions)]
    return []


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A million small objects, none of them garbage: looking for cycles among them again and again costs a fifth more time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def storable(text: str) -> str:
    """The text without what files of text cannot hold: lone surrogates become "?", NUL a space."""
    return text if text.isascii() and "\0" not in text else text.encode("utf-8", "replace").decode().replace("\0", " ")


def _reject(file: str, reason: str, message: str) -> Reject:
    return Reject(file=file, reason=reason, message=message)


def _entries(path: Path, content: Any, section: str, hint: str) -> Iterator[tuple[str, Any]]:
    """The entries of a list at the top level, and the place of each, for messages."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: {hint}: the top level is a {type(content).__name__}.")
    if not isinstance(content.get(section), list):
        raise InputError(f'{path}: {hint}: there is no list "{section}".')
    return ((f"{section}[{position}]", entry) for position, entry in enumerate(content[section]))


def _check_fields(path: Path, place: str, entry: Any, fields: Mapping[str, type], hint: str) -> None:
    for field, kind in fields.items():
        value = entry.get(field) if isinstance(entry, dict) else None
        # type(), not isinstance(): JSON's true is no number.
        if type(value) is not kind or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            shown = repr(value if isinstance(entry, dict) else entry)[:80]
            raise InputError(f"{path}: {hint}: {place}.{field} should be of type {kind.__name__}, found {shown}.")
