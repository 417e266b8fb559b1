"""Annotation files -> records: which images there are, and what was said about each.

Every form ends in the same plan of :class:`CaptionedImage`; whatever cannot be used becomes a :class:`Reject`, never silence.
"""

import contextlib
import gc
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from shards.atomic import read_json
from shards.errors import InputError
from shards.manifest import Reject

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


def _check_coco(path: Path, content: Any) -> None:
    """Refuse what does not have the form, before any library meets it."""
    forms = {"images": (("id", int), ("file_name", str)), "annotations": (("id", int), ("image_id", int), ("caption", str))}
    hint = 'A COCO caption file is an object with "images" (id, file_name) and "annotations" (id, image_id, caption).'
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a COCO caption file: the top level is a {type(content).__name__}. {hint}")
    for section, fields in forms.items():
        entries = content.get(section)
        if not isinstance(entries, list):
            raise InputError(f'{path}: not a COCO caption file: there is no list "{section}". {hint}')
        for position, entry in enumerate(entries):
            for field, kind in fields:
                value = entry.get(field) if isinstance(entry, dict) else None
                # type(), not isinstance(): JSON's true is no number.
                if type(value) is not kind or (isinstance(value, int) and not -(2**63) <= value < 2**63):
                    shown = repr(value if isinstance(entry, dict) else entry)[:80]
                    raise InputError(
                        f"{path}: not a COCO caption file: {section}[{position}].{field} should be of type {kind.__name__}, found {shown}. {hint}"
                    )
