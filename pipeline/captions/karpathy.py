"""Split files in the format that Karpathy and Fei-Fei (CVPR 2015) published for Flickr8k, Flickr30k and COCO.

They are at https://cs.stanford.edu/people/karpathy/deepimagesent/. One JSON object has all images with their splits and their sentences.
"""

import itertools
from pathlib import Path
from typing import Any

from pipeline.captions.formats import CaptionFormat, CaptionInput
from pipeline.captions.records import (
    Caption,
    CaptionedImage,
    CaptionFile,
    ListedImage,
    check_fields,
    checked_entries,
    no_garbage_collection,
    storable,
    unusable_caption,
    usable_records,
)
from shards.errors import InputError
from shards.layout import SPLIT_NAME
from shards.rejects import Reject


def karpathy_file(path: Path, content: Any, *, restval: bool = True) -> CaptionFile:
    """Read a Karpathy split file.

    An image's id is its ``cocoid`` if it has one, else its ``imgid``. Its file name is preceded by ``filepath`` if it has one. A
    caption's id is its ``sentid`` if all captions of the file have one, else its position among them, from 0. ``tokens`` is ignored.

    Args:
        path: For messages.
        content: An object with ``images`` (filename, imgid, split, sentences with raw).
        restval: Make split ``restval`` part of ``train``. It has the images of COCO's val2014 that are in neither val nor test.

    Raises:
        InputError: Not a Karpathy split file; names the first malformed entry.
    """
    with no_garbage_collection():
        _check(path, content)
        return _read_images(content["images"], restval)


def _read_images(images: list[dict[str, Any]], restval: bool) -> CaptionFile:
    position = itertools.count()
    by_sentid = all("sentid" in sentence for image in images for sentence in image["sentences"])
    splits: dict[str | None, list[CaptionedImage]] = {}
    rejects: dict[str | None, list[Reject]] = {}
    listed: list[ListedImage] = []
    image_ids: set[int] = set()
    imgids: set[int] = set()
    caption_ids: set[int] = set()
    for image in images:
        split = "train" if restval and image["split"] == "restval" else image["split"]
        records, left_out = splits.setdefault(split, []), rejects.setdefault(split, [])
        file_name = "/".join(filter(None, (image.get("filepath"), image["filename"])))
        image_id, imgid = image.get("cocoid", image["imgid"]), image["imgid"]
        captions = []
        for sentence in image["sentences"]:
            caption = Caption(id=sentence["sentid"] if by_sentid else next(position), text=storable(sentence["raw"]))
            if caption.id in caption_ids:
                message = "the sentence's id is repeated; the first is kept"
                left_out.append(Reject(file=f"sentence {caption.id}", reason="duplicate_caption_id", message=message))
            elif (reject := unusable_caption(caption.text, file_name, f"sentence {caption.id}")) is not None:
                left_out.append(reject)
            else:
                captions.append(caption)
            caption_ids.add(caption.id)
        if image_id in image_ids or imgid in imgids:
            message = f"image id {image_id} or imgid {imgid} is repeated; the first image is kept"
            left_out.append(Reject(file=file_name, reason="duplicate_image_id", message=message))
            continue
        image_ids.add(image_id)
        imgids.add(imgid)
        listed.append(ListedImage(image_id=image_id, imgid=imgid, file_name=file_name))
        records += usable_records(image_id, file_name, captions, left_out)
    return CaptionFile(splits=splits, rejects=rejects, listed=tuple(listed))


def _check(path: Path, content: Any) -> None:
    """Refuse a malformed file."""
    hint = 'not a Karpathy split file, which is an object with "images" (filename, imgid, split, sentences with raw)'
    for place, image in checked_entries(path, content, "images", hint):
        optional = {name: kind for name, kind in (("cocoid", int), ("filepath", str)) if isinstance(image, dict) and name in image}
        check_fields(path, place, image, {"filename": str, "imgid": int, "split": str, "sentences": list, **optional}, hint)
        if not SPLIT_NAME.fullmatch(image["split"]):
            raise InputError(
                f"{path}: {place}.split is {image['split'][:80]!r}: a split's name consists of at most 64 letters, digits and underscores. Rename it."
            )
        for number, sentence in enumerate(image["sentences"]):
            fields = {"raw": str, "sentid": int} if isinstance(sentence, dict) and "sentid" in sentence else {"raw": str}
            check_fields(path, f"{place}.sentences[{number}]", sentence, fields, hint)


def _matches(file: CaptionInput) -> bool:
    images = file.document.get("images") if isinstance(file.document, dict) and "annotations" not in file.document else None
    return isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images)


KARPATHY = CaptionFormat(
    description='a JSON object with "images" that have "sentences"',
    matches=_matches,
    read=lambda file: karpathy_file(file.path, file.document, restval=file.restval),
)
