"""Captions -> records: which images there are, and what was said about each. The JSON forms with ids of their own: COCO's and Karpathy's.

Every form (:mod:`pipeline.caption_files` knows them all) ends in the same records of :class:`CaptionedImage`; whatever cannot be used
becomes a :class:`Reject`, never silence.
"""

import contextlib
import gc
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tokenizer import tokenize
from shards.errors import InputError
from shards.manifest import SPLIT_NAME, Reject
from shards.paths import is_inside

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


def coco_file(path: Path, content: Any) -> CaptionFile:
    """A COCO caption file (https://cocodataset.org/#format-data, "Image Captioning"), indexed by pycocotools.

    Args:
        path: For messages.
        content: An object with ``images`` (id, file_name) and ``annotations`` (id, image_id, caption).

    Returns:
        The images that can be used, in the file's order, and the rejects: annotations without their image, images without a
        usable caption, empty captions, repeated ids and file names that leave the images' folder. An image's imgid is its place in the file.

    Raises:
        InputError: Not a COCO caption file; names the first entry that is not of the form.
    """
    with no_garbage_collection():
        return _coco_file(path, content)


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


def _coco_file(path: Path, content: Any) -> CaptionFile:
    from pycocotools.coco import COCO

    _check_coco(path, content)
    rejects: list[Reject] = []
    images: dict[int, dict[str, Any]] = {}
    listed = []
    for place, image in enumerate(content["images"]):
        if image["id"] in images:
            rejects.append(_reject(image["file_name"], "duplicate_image_id", f"image id {image['id']} occurs again; the first is kept"))
        else:
            images[image["id"]] = image
            listed.append(ListedImage(image_id=image["id"], imgid=place, file_name=image["file_name"]))
    annotations: dict[int, dict[str, Any]] = {}
    for annotation in content["annotations"]:
        label = f"annotation {annotation['id']}"
        if annotation["id"] in annotations:
            rejects.append(_reject(label, "duplicate_caption_id", "the annotation's id occurs again; the first is kept"))
        elif annotation["image_id"] not in images:
            rejects.append(_reject(label, "caption_without_image", f"image {annotation['image_id']} is not in the file"))
        else:
            annotations[annotation["id"]] = annotation
            annotation["caption"] = storable(annotation["caption"])
            if not annotation["caption"].strip():
                file_name = images[annotation["image_id"]]["file_name"]
                rejects.append(_reject(file_name, "empty_caption", f"{label} holds no text"))
    coco = COCO()
    coco.dataset = {"images": list(images.values()), "annotations": list(annotations.values())}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools announces its index on standard output
        coco.createIndex()

    records = []
    for image_id, image in images.items():
        captions = (
            Caption(id=annotation["id"], text=annotation["caption"])
            for annotation in coco.imgToAnns.get(image_id, [])
            if annotation["caption"].strip()
        )
        records += _usable(image_id, image["file_name"], captions, rejects)
    return CaptionFile(splits={None: records}, rejects={None: rejects}, listed=tuple(listed))


def storable(text: str) -> str:
    """The text without what files of text cannot hold: lone surrogates become "?", NUL a space."""
    return text if text.isascii() and "\0" not in text else text.encode("utf-8", "replace").decode().replace("\0", " ")


def _reject(file: str, reason: str, message: str) -> Reject:
    return Reject(file=file, reason=reason, message=message)


def karpathy_file(path: Path, content: Any, *, restval: bool = True) -> CaptionFile:
    """A split file of the form that Karpathy and Fei-Fei (CVPR 2015) published for Flickr8k, Flickr30k and COCO
    (https://cs.stanford.edu/people/karpathy/deepimagesent/).

    An image's id is its ``cocoid`` where it has one, else its ``imgid``; its file name has ``filepath`` before it where there is one.
    A caption's id is its ``sentid`` where all captions of the file have one, else its place among them, from 0. Tokens are not read.

    Args:
        path: For messages.
        content: An object with ``images`` (filename, imgid, split, sentences with raw).
        restval: Split ``restval``, the images of COCO's val2014 that are in neither val nor test, becomes part of ``train``.

    Raises:
        InputError: Not a Karpathy split file; names the first entry that is not of the form.
    """
    with no_garbage_collection():
        return _karpathy_file(path, content, restval)


def _karpathy_file(path: Path, content: Any, restval: bool) -> CaptionFile:
    _check_karpathy(path, content)
    counted = itertools.count()
    by_sentid = all("sentid" in sentence for image in content["images"] for sentence in image["sentences"])
    splits: dict[str | None, list[CaptionedImage]] = {}
    rejects: dict[str | None, list[Reject]] = {}
    listed: list[ListedImage] = []
    image_ids: set[int] = set()
    imgids: set[int] = set()
    caption_ids: set[int] = set()
    for image in content["images"]:
        split = "train" if restval and image["split"] == "restval" else image["split"]
        records, left_out = splits.setdefault(split, []), rejects.setdefault(split, [])
        file_name = "/".join(filter(None, (image.get("filepath"), image["filename"])))
        image_id, imgid = image.get("cocoid", image["imgid"]), image["imgid"]
        captions = []
        for sentence in image["sentences"]:
            caption = Caption(id=sentence["sentid"] if by_sentid else next(counted), text=storable(sentence["raw"]))
            if caption.id in caption_ids:
                left_out.append(_reject(f"sentence {caption.id}", "duplicate_caption_id", "the sentence's id occurs again; the first is kept"))
            elif not caption.text.strip():
                left_out.append(_reject(file_name, "empty_caption", f"sentence {caption.id} holds no text"))
            else:
                captions.append(caption)
            caption_ids.add(caption.id)
        if image_id in image_ids or imgid in imgids:
            left_out.append(_reject(file_name, "duplicate_image_id", f"image id {image_id}, imgid {imgid}: occurs again; the first is kept"))
            continue
        image_ids.add(image_id)
        imgids.add(imgid)
        listed.append(ListedImage(image_id=image_id, imgid=imgid, file_name=file_name))
        records += _usable(image_id, file_name, captions, left_out)
    return CaptionFile(splits=splits, rejects=rejects, listed=tuple(listed))


def _check_coco(path: Path, content: Any) -> None:
    """Refuse what does not have the form, before any library meets it."""
    hint = 'not a COCO caption file, which is an object with "images" (id, file_name) and "annotations" (id, image_id, caption)'
    forms = {"images": {"id": int, "file_name": str}, "annotations": {"id": int, "image_id": int, "caption": str}}
    for section, fields in forms.items():
        for place, entry in _entries(path, content, section, hint):
            _check_fields(path, place, entry, fields, hint)


def _check_karpathy(path: Path, content: Any) -> None:
    """Refuse what does not have the form."""
    hint = 'not a Karpathy split file, which is an object with "images" (filename, imgid, split, sentences with raw)'
    for place, image in _entries(path, content, "images", hint):
        optional = {name: kind for name, kind in (("cocoid", int), ("filepath", str)) if isinstance(image, dict) and name in image}
        _check_fields(path, place, image, {"filename": str, "imgid": int, "split": str, "sentences": list, **optional}, hint)
        if not SPLIT_NAME.fullmatch(image["split"]):
            raise InputError(
                f"{path}: {place}.split is {image['split'][:80]!r}: a split's name is made of letters, digits and underscores, 64 at most. Rename it."
            )
        for number, sentence in enumerate(image["sentences"]):
            fields = {"raw": str, "sentid": int} if isinstance(sentence, dict) and "sentid" in sentence else {"raw": str}
            _check_fields(path, f"{place}.sentences[{number}]", sentence, fields, hint)


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
