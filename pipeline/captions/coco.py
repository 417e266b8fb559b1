"""TODO pipeline/captions/coco.py."""

import contextlib
import io
from pathlib import Path
from typing import Any

from pipeline.captions.records import Caption, CaptionFile, ListedImage, _check_fields, _entries, _reject, _usable, no_garbage_collection, storable
from shards.rejects import Reject


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


def _check_coco(path: Path, content: Any) -> None:
    """Refuse what does not have the form, before any library meets it."""
    hint = 'not a COCO caption file, which is an object with "images" (id, file_name) and "annotations" (id, image_id, caption)'
    forms = {"images": {"id": int, "file_name": str}, "annotations": {"id": int, "image_id": int, "caption": str}}
    for section, fields in forms.items():
        for place, entry in _entries(path, content, section, hint):
            _check_fields(path, place, entry, fields, hint)
