"""COCO's caption files (https://cocodataset.org/#format-data, "Image Captioning"): one JSON object, indexed by pycocotools."""

import contextlib
import io
from pathlib import Path
from typing import Any

from pipeline.captions.formats import CaptionFormat, CaptionInput
from pipeline.captions.records import (
    Caption,
    CaptionFile,
    ListedImage,
    check_fields,
    checked_entries,
    no_garbage_collection,
    storable,
    unusable_caption,
    usable_records,
)
from shards.rejects import Reject


def coco_file(path: Path, content: Any) -> CaptionFile:
    """Read a COCO caption file.

    Args:
        path: For messages.
        content: An object with ``images`` (id, file_name) and ``annotations`` (id, image_id, caption).

    Returns:
        The usable images in the file's order. An image's imgid is its position in the file. Rejected are annotations without their image,
        images without a usable caption, captions without words, too long captions, repeated ids, and file names that leave the images' folder.

    Raises:
        InputError: Not a COCO caption file; names the first malformed entry.
    """
    with no_garbage_collection():
        _check(path, content)
        rejects: list[Reject] = []
        images, listed = _distinct_images(content, rejects)
        captions = _captions_by_image(content, images, rejects)
        records = []
        for image_id, image in images.items():
            records += usable_records(image_id, image["file_name"], captions.get(image_id, []), rejects)
        return CaptionFile(splits={None: records}, rejects={None: rejects}, listed=tuple(listed))


def _distinct_images(content: Any, rejects: list[Reject]) -> tuple[dict[int, dict[str, Any]], list[ListedImage]]:
    """The file's images by id, and as the file lists them; the first of several with the same id."""
    images: dict[int, dict[str, Any]] = {}
    listed = []
    for position, image in enumerate(content["images"]):
        if image["id"] in images:
            message = f"image id {image['id']} is repeated; the first image is kept"
            rejects.append(Reject(file=image["file_name"], reason="duplicate_image_id", message=message))
        else:
            images[image["id"]] = image
            listed.append(ListedImage(image_id=image["id"], imgid=position, file_name=image["file_name"]))
    return images, listed


def _captions_by_image(content: Any, images: dict[int, dict[str, Any]], rejects: list[Reject]) -> dict[int, list[Caption]]:
    """The captions that hold text, by image id, in pycocotools' order."""
    from pycocotools.coco import COCO as CocoIndex  # noqa: N811

    annotations: dict[int, dict[str, Any]] = {}
    for annotation in content["annotations"]:
        label = f"annotation {annotation['id']}"
        if annotation["id"] in annotations:
            rejects.append(Reject(file=label, reason="duplicate_caption_id", message="the annotation's id is repeated; the first is kept"))
        elif annotation["image_id"] not in images:
            message = f"image {annotation['image_id']} is not in the file"
            rejects.append(Reject(file=label, reason="caption_without_image", message=message))
        else:
            annotations[annotation["id"]] = annotation
            annotation["caption"] = storable(annotation["caption"])
            reject = unusable_caption(annotation["caption"], images[annotation["image_id"]]["file_name"], label)
            if reject is not None:
                rejects.append(reject)
                annotation["caption"] = ""
    index = CocoIndex()
    index.dataset = {"images": list(images.values()), "annotations": list(annotations.values())}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools announces its index on standard output
        index.createIndex()
    return {
        image_id: [Caption(id=each["id"], text=each["caption"]) for each in of_image if each["caption"]]
        for image_id, of_image in index.imgToAnns.items()
    }


def _check(path: Path, content: Any) -> None:
    """Refuse a malformed file before any library reads it."""
    hint = 'not a COCO caption file, which is an object with "images" (id, file_name) and "annotations" (id, image_id, caption)'
    fields_of = {"images": {"id": int, "file_name": str}, "annotations": {"id": int, "image_id": int, "caption": str}}
    for section, fields in fields_of.items():
        for place, entry in checked_entries(path, content, section, hint):
            check_fields(path, place, entry, fields, hint)


def _matches(file: CaptionInput) -> bool:
    return isinstance(file.document, dict) and not {"images", "annotations"}.isdisjoint(file.document)


COCO = CaptionFormat(
    description='a JSON object with "images" and "annotations"',
    matches=_matches,
    read=lambda file: coco_file(file.path, file.document),
)
