"""What every caption format is read into: records of images with their captions, and rejects.

Whatever cannot be used becomes a :class:`shards.rejects.Reject`; nothing is dropped silently.
"""

import contextlib
import gc
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.captions.languages import Language
from shards.errors import InputError
from shards.paths import Location, is_absolute, is_inside, same_name
from shards.rejects import Reject

# A caption has words if it has a letter, ideograph, syllable or digit of any script. Unicode counts four invisible fillers of Hangul as letters.
_LETTER_OR_DIGIT = re.compile(r"[^\W_\u115f\u1160\u3164\uffa0]")
# A longer caption is taken for a mistake, such as a whole file in one field. Those of the known datasets have less than a tenth of it.
MAX_CAPTION_CHARACTERS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One caption as it was written. ``id`` is unique in its captions file."""

    id: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredImage:
    """Where a table holds the bytes of an image.

    Attributes:
        table: A Parquet or Arrow file.
        column: The column of the bytes; ``NAME.bytes`` for a field of a struct.
        row: From 0.
    """

    table: Location
    column: str
    row: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionedImage:
    """One image and all its captions, at least one.

    Attributes:
        file_name: Relative to the images' folder.
        stored: Where its bytes are, if the captions came with them.
    """

    image_id: int
    file_name: str
    captions: tuple[Caption, ...]
    stored: StoredImage | None = None

    def tokenized(self, language: Language) -> list[dict[str, Any]]:
        """The captions as they are stored in an image's record: ``id``, ``text``, ``tokens``."""
        return [{"id": caption.id, "text": caption.text, "tokens": language.tokenize(caption.text)} for caption in self.captions]


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedImage:
    """An image as a captions file lists it, usable or not.

    Attributes:
        imgid: Its position in the file, by which arrays of features are ordered.
    """

    image_id: int
    imgid: int
    file_name: str


@dataclass(frozen=True, kw_only=True)
class CaptionFile:
    """The content of a captions file.

    Attributes:
        splits: The usable images of each split, in the file's order; may be empty. The name is None if the file names no splits.
        rejects: What cannot be used, by split; under None what belongs to no split.
        listed: All images, without repeated ones.
    """

    splits: dict[str | None, list[CaptionedImage]]
    rejects: dict[str | None, list[Reject]]
    listed: tuple[ListedImage, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRow:
    """One row or line of a file without ids: an image and some of its captions."""

    file_name: str
    captions: tuple[str, ...]
    split: str | None = None
    stored: StoredImage | None = None


def file_of_rows(rows: Iterable[CaptionRow | Reject]) -> CaptionFile:
    """Group rows by image, in the order of each image's first row.

    An image's id is its position among the images, usable or not, from 0. A caption's id is its position among the captions. An
    image belongs to the split of its first row; its rows in other splits are rejects, and so is a caption that the image already has word for
    word.
    """
    images: dict[str, tuple[int, CaptionRow, dict[str, Caption]]] = {}
    splits: dict[str | None, list[CaptionedImage]] = {}
    rejects: dict[str | None, list[Reject]] = {}
    position = itertools.count()
    for row in rows:
        if isinstance(row, Reject):
            rejects.setdefault(None, []).append(row)
            continue
        _, first, captions = images.setdefault(same_name(row.file_name), (len(images), row, {}))
        left_out = rejects.setdefault(row.split, [])
        if row.split != first.split:
            message = f"also has a row in split {row.split}; the first split, {first.split}, is kept"
            left_out.append(Reject(file=row.file_name, reason="other_split", message=message))
            continue
        for text in row.captions:
            caption = Caption(id=next(position), text=storable(text))
            reject = unusable_caption(caption.text, row.file_name, f"caption {caption.id}")
            if reject is not None:
                left_out.append(reject)
            elif caption.text in captions:
                message = f"caption {caption.id}: the image has the same text as caption {captions[caption.text].id}"
                left_out.append(Reject(file=row.file_name, reason="duplicate_caption", message=message))
            else:
                captions[caption.text] = caption
    for image_id, first, captions in images.values():
        records = usable_records(image_id, first.file_name, captions.values(), rejects.setdefault(first.split, []), stored=first.stored)
        splits.setdefault(first.split, []).extend(records)
    listed = tuple(ListedImage(image_id=image_id, imgid=image_id, file_name=first.file_name) for image_id, first, _ in images.values())
    return CaptionFile(splits=splits, rejects=rejects, listed=listed)


def unusable_caption(text: str, file_name: str, label: str) -> Reject | None:
    """The reject of a caption that is empty, has no words, or is longer than ``MAX_CAPTION_CHARACTERS``; None if it can be used.

    Args:
        text: The caption.
        file_name: The image's file name.
        label: Which caption it is, for the message.
    """
    if not text.strip():
        return Reject(file=file_name, reason="empty_caption", message=f"{label} has no text")
    if len(text) > MAX_CAPTION_CHARACTERS:
        message = f"{label} has {len(text)} characters, more than the limit of {MAX_CAPTION_CHARACTERS}"
        return Reject(file=file_name, reason="caption_too_long", message=message)
    if not _LETTER_OR_DIGIT.search(text):
        return Reject(file=file_name, reason="caption_without_words", message=f"{label} has no letters or digits: {ascii(text)[:80]}")
    return None


def usable_records(
    image_id: int, file_name: str, captions: Iterable[Caption], rejects: list[Reject], *, stored: StoredImage | None = None
) -> list[CaptionedImage]:
    """The image's record if it is usable; else none, and a line in ``rejects``. An absolute file name may lie in the images' folder."""
    captions = tuple(captions)
    if not captions:
        rejects.append(Reject(file=file_name, reason="no_captions", message=f"image {image_id} has no usable caption"))
    elif not is_inside(file_name) and (stored is not None or not is_absolute(file_name)):
        rejects.append(Reject(file=file_name, reason="path_escape", message="the file name leads out of the images' folder"))
    else:
        return [CaptionedImage(image_id=image_id, file_name=file_name, captions=captions, stored=stored)]
    return []


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector while a million small objects are made: searching them for cycles takes a fifth more time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def storable(text: str) -> str:
    """The text without characters that text files cannot hold: lone surrogates become "?", NUL becomes a space."""
    return text if text.isascii() and "\0" not in text else text.encode("utf-8", "replace").decode().replace("\0", " ")


def checked_entries(path: Path, content: Any, section: str, hint: str) -> Iterator[tuple[str, Any]]:
    """The entries of a list at the top level of a JSON document, each with its place for messages (``images[3]``).

    Raises:
        InputError: There is no such list.
    """
    if not isinstance(content, dict):
        raise InputError(f"{path}: {hint}: the top level is a {type(content).__name__}.")
    if not isinstance(content.get(section), list):
        raise InputError(f'{path}: {hint}: there is no list "{section}".')
    return ((f"{section}[{position}]", entry) for position, entry in enumerate(content[section]))


def check_fields(path: Path, place: str, entry: Any, fields: Mapping[str, type], hint: str) -> None:
    """Refuse an entry whose fields are missing or of another type, or whose integers do not fit into 64 bits.

    Raises:
        InputError: Names the place, the field and what was found.
    """
    for field, kind in fields.items():
        value = entry.get(field) if isinstance(entry, dict) else None
        # type() and not isinstance(): JSON's true is not a number
        if type(value) is not kind or (isinstance(value, int) and not -(2**63) <= value < 2**63):
            shown = repr(value if isinstance(entry, dict) else entry)[:80]
            raise InputError(f"{path}: {hint}: {place}.{field} should be of type {kind.__name__}, found {shown}.")
