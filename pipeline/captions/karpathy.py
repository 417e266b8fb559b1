"""TODO pipeline/captions/karpathy.py."""

import itertools
from pathlib import Path
from typing import Any

from pipeline.captions.records import (
    Caption,
    CaptionedImage,
    CaptionFile,
    ListedImage,
    _check_fields,
    _entries,
    _reject,
    _usable,
    no_garbage_collection,
    storable,
)
from shards.errors import InputError
from shards.layout import SPLIT_NAME
from shards.rejects import Reject


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
