"""Several captions files -> one, image by image."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.captions.records import Caption, CaptionedImage, CaptionFile, StoredImage
from shards.paths import same_name
from shards.rejects import Reject

DEFAULT_SPLIT = "train"


@dataclass(kw_only=True)
class _MergedImage:
    """An image with the captions that all files have for it."""

    image_id: int
    file_name: str
    split: str | None
    captions: list[Caption]
    stored: StoredImage | None


def merge(files: Sequence[CaptionFile]) -> CaptionFile:
    """Merge files in order: images with the same file name become one image with the captions of all files.

    Ids stay as they are. Where two files use the same id, the later one gets the smallest number that no file uses. An image belongs to
    the split that any file names for it; to ``train`` if no file names one for it but some file names splits. If an earlier file has the
    image, a caption that is already there word for word is a reject, and so are all captions of another split.
    """
    image_ids = _UniqueIds(record.image_id for file in files for records in file.splits.values() for record in records)
    caption_ids = _UniqueIds(caption.id for file in files for records in file.splits.values() for record in records for caption in record.captions)
    merged: list[_MergedImage] = []
    rejects: dict[str | None, list[Reject]] = {}
    # One file may list two images with one name. They stay two, and later files add to the first.
    earlier: dict[str, list[_MergedImage]] = {}
    for file in files:
        for split, left_out in file.rejects.items():
            rejects.setdefault(split, []).extend(left_out)
        added = []
        for split, records in file.splits.items():
            for record in records:
                namesakes = earlier.get(same_name(record.file_name), [])
                if not namesakes:
                    image_id = image_ids.take(record.image_id)
                    image = _MergedImage(image_id=image_id, file_name=record.file_name, split=split, captions=[], stored=record.stored)
                    added.append(image)
                else:
                    image = namesakes[0]
                    image.stored = image.stored or record.stored
                _add_captions(image, record, split, namesakes, caption_ids, rejects)
        merged += added
        for image in added:
            earlier.setdefault(same_name(image.file_name), []).append(image)
    return _by_split(files, merged, rejects)


def _add_captions(
    image: _MergedImage,
    record: CaptionedImage,
    split: str | None,
    namesakes: Sequence[_MergedImage],
    caption_ids: "_UniqueIds",
    rejects: dict[str | None, list[Reject]],
) -> None:
    """Add a record's captions to its image, except those that ``namesakes``, the images of earlier files, already have."""
    if split is not None and image.split not in (None, split):
        message = f"an earlier file has it in split {image.split}, which is kept"
        rejects.setdefault(split, []).append(Reject(file=record.file_name, reason="other_split", message=message))
        return
    image.split = image.split or split
    texts = {caption.text for each in namesakes for caption in each.captions}
    for caption in record.captions:
        if caption.text in texts:
            message = f"caption {caption.id}: an earlier file has the same text"
            rejects.setdefault(split, []).append(Reject(file=record.file_name, reason="duplicate_caption", message=message))
        else:
            image.captions.append(Caption(id=caption_ids.take(caption.id), text=caption.text))


def _by_split(files: Sequence[CaptionFile], merged: Sequence[_MergedImage], rejects: dict[str | None, list[Reject]]) -> CaptionFile:
    names = list(dict.fromkeys(split for file in files for split in file.splits))
    unnamed = DEFAULT_SPLIT if any(name is not None for name in names) else None
    splits: dict[str | None, list[CaptionedImage]] = {name if name is not None else unnamed: [] for name in names}
    for image in merged:
        record = CaptionedImage(image_id=image.image_id, file_name=image.file_name, captions=tuple(image.captions), stored=image.stored)
        splits[image.split if image.split is not None else unnamed].append(record)
    return CaptionFile(splits=splits, rejects=rejects, listed=())


class _UniqueIds:
    """Gives out each id once.

    Args:
        wanted: All ids that will be asked for.
    """

    def __init__(self, wanted: Iterable[int]) -> None:
        known = set(wanted)
        self._free = (number for number in itertools.count() if number not in known)
        self._given: set[int] = set()

    def take(self, wanted: int) -> int:
        """``wanted``, or the next free number if it was given out before."""
        number = wanted if wanted not in self._given else next(self._free)
        self._given.add(number)
        return number
