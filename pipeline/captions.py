"""Annotation files -> records: which images there are, and what was said about each.

Every form ends in the same plan of :class:`CaptionedImage`; whatever cannot be used becomes a :class:`Reject`, never silence.
"""

import contextlib
import gc
import io
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pipeline.tokenizer import tokenize
from shards.atomic import read_json
from shards.errors import InputError
from shards.manifest import SPLIT_NAME, Reject

PLAIN_NAME = re.compile(r"\w[\w.-]*")


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


def is_inside(file_name: str) -> bool:
    """Whether a relative file name stays below the folder that it is joined to, on POSIX and on Windows."""
    if PLAIN_NAME.fullmatch(file_name):
        return True
    posix, windows = PurePosixPath(file_name), PureWindowsPath(file_name)
    return not (posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts or "\0" in file_name)


def read_coco(path: Path) -> tuple[list[CaptionedImage], list[Reject]]:
    """Read a COCO caption file (https://cocodataset.org/#format-data, "Image Captioning") through pycocotools.

    Args:
        path: A JSON file with ``images`` (id, file_name) and ``annotations`` (id, image_id, caption).

    Returns:
        The images that can be used, in the file's order, and the rejects: annotations without their image, images without a
        usable caption, empty captions, repeated ids and file names that leave the images' folder.

    Raises:
        InputError: No such file, or not a COCO caption file; names the first entry that is not of the form.
    """
    with _no_garbage_collection():
        return _read_coco(path)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A million small objects, none of them garbage: looking for cycles among them again and again costs a fifth more time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _read_coco(path: Path) -> tuple[list[CaptionedImage], list[Reject]]:
    from pycocotools.coco import COCO

    content = read_json(path, what="COCO caption file")
    _check_coco(path, content)
    rejects: list[Reject] = []
    images: dict[int, dict[str, Any]] = {}
    for image in content["images"]:
        if image["id"] in images:
            rejects.append(_reject(image["file_name"], "duplicate_image_id", f"image id {image['id']} occurs again; the first is kept"))
        else:
            images[image["id"]] = image
    annotations: dict[int, dict[str, Any]] = {}
    for annotation in content["annotations"]:
        label = f"annotation {annotation['id']}"
        if annotation["id"] in annotations:
            rejects.append(_reject(label, "duplicate_caption_id", "the annotation's id occurs again; the first is kept"))
        elif annotation["image_id"] not in images:
            rejects.append(_reject(label, "caption_without_image", f"image {annotation['image_id']} is not in the file"))
        else:
            annotations[annotation["id"]] = annotation
            annotation["caption"] = _storable(annotation["caption"])
            if not annotation["caption"].strip():
                file_name = images[annotation["image_id"]]["file_name"]
                rejects.append(_reject(file_name, "empty_caption", f"{label} holds no text"))
    coco = COCO()
    coco.dataset = {"images": list(images.values()), "annotations": list(annotations.values())}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools announces its index on standard output
        coco.createIndex()

    records = []
    for image_id, image in images.items():
        captions = tuple(
            Caption(id=annotation["id"], text=annotation["caption"])
            for annotation in coco.imgToAnns.get(image_id, [])
            if annotation["caption"].strip()
        )
        if not captions:
            rejects.append(_reject(image["file_name"], "no_captions", f"image {image_id} has no usable caption"))
        elif not is_inside(image["file_name"]):
            rejects.append(_reject(image["file_name"], "path_escape", "the file name leads out of the images' folder"))
        else:
            records.append(CaptionedImage(image_id=image_id, file_name=image["file_name"], captions=captions))
    return records, rejects


def _storable(text: str) -> str:
    """The text without what files of text cannot hold: lone surrogates become "?", NUL a space."""
    return text if text.isascii() and "\0" not in text else text.encode("utf-8", "replace").decode().replace("\0", " ")


def _reject(file: str, reason: str, message: str) -> Reject:
    return Reject(file=file, reason=reason, message=message)


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedImage:
    """An image as a Karpathy split file lists it, whether it can be used or not.

    Attributes:
        imgid: Its place in the whole dataset: what matrices of features are ordered by.
    """

    image_id: int
    imgid: int
    file_name: str


@dataclass(frozen=True, kw_only=True)
class KarpathyFile:
    """What a Karpathy split file holds.

    Attributes:
        splits: By name, the images that can be used, in the file's order; a split may have none.
        rejects: By split, what cannot be used.
        listed: All images, but for repeated ones.
    """

    splits: dict[str, list[CaptionedImage]]
    rejects: dict[str, list[Reject]]
    listed: tuple[ListedImage, ...]


def read_karpathy(path: Path, *, restval: bool = True) -> KarpathyFile:
    """Read a split file of the form that Karpathy and Fei-Fei (CVPR 2015) published for Flickr8k, Flickr30k and COCO
    (https://cs.stanford.edu/people/karpathy/deepimagesent/).

    An image's id is its ``cocoid`` where it has one, else its ``imgid``; its file name has ``filepath`` before it where there is one.
    A caption's id is its ``sentid`` where all captions of the file have one, else its place among them, from 0. Tokens are not read.

    Args:
        path: A JSON file with ``images`` (filename, imgid, split, sentences with raw).
        restval: Split ``restval``, the images of COCO's val2014 that are in neither val nor test, becomes part of ``train``.

    Raises:
        InputError: No such file, or not a Karpathy split file; names the first entry that is not of the form.
    """
    with _no_garbage_collection():
        return _read_karpathy(path, restval)


def _read_karpathy(path: Path, restval: bool) -> KarpathyFile:
    content = read_json(path, what="Karpathy split file")
    _check_karpathy(path, content)
    counted = itertools.count()
    by_sentid = all("sentid" in sentence for image in content["images"] for sentence in image["sentences"])
    splits: dict[str, list[CaptionedImage]] = {}
    rejects: dict[str, list[Reject]] = {}
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
            caption = Caption(id=sentence["sentid"] if by_sentid else next(counted), text=_storable(sentence["raw"]))
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
        if not captions:
            left_out.append(_reject(file_name, "no_captions", f"image {image_id} has no usable caption"))
        elif not is_inside(file_name):
            left_out.append(_reject(file_name, "path_escape", "the file name leads out of the images' folder"))
        else:
            records.append(CaptionedImage(image_id=image_id, file_name=file_name, captions=tuple(captions)))
    return KarpathyFile(splits=splits, rejects=rejects, listed=tuple(listed))


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
