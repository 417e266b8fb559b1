"""Splits for captions that have none: a fraction of the images, chosen by a hash of the file name.

An image's split depends on nothing else, so that adding or removing images, reordering the captions, or running on another machine leaves all
others where they are. Images of one file name, in whatever form of Unicode, are in one split.
"""

import hashlib
import unicodedata
from collections.abc import Sequence

from pipeline.captions.merge import DEFAULT_SPLIT
from pipeline.captions.records import CaptionedImage, CaptionFile
from shards.errors import InputError, SettingsError
from shards.layout import SPLIT_NAME

Holdout = tuple[tuple[str, float], ...]


def parse_holdout(texts: Sequence[str]) -> Holdout:
    """Splits and their fractions, from texts such as ``val=0.1`` or ``val=0.1,test=0.1``.

    Raises:
        SettingsError: Another form, a split named twice, or fractions that leave nothing for the train split.
    """
    holdout: dict[str, float] = {}
    for part in (part for text in texts for part in text.split(",")):
        name, _, value = part.partition("=")
        try:
            fraction = float(value)
        except ValueError:
            raise SettingsError(f"`holdout` {part}: must have the form SPLIT=FRACTION, such as val=0.1.") from None
        if not 0 < fraction < 1:
            raise SettingsError(f"`holdout` {part}: the fraction must be between 0 and 1.")
        if not SPLIT_NAME.fullmatch(name):
            raise SettingsError(f"`holdout` {part}: a split's name consists of letters, digits and underscores, at most 64.")
        if name == DEFAULT_SPLIT:
            raise SettingsError(f"`holdout` {part}: {DEFAULT_SPLIT} is the split that the images are taken from. Name another split, such as val.")
        if name in holdout:
            raise SettingsError(f"`holdout` {part}: {name} is named twice.")
        holdout[name] = fraction
    if sum(holdout.values()) >= 1:
        raise SettingsError(f"`holdout` {', '.join(texts)}: leaves no images for {DEFAULT_SPLIT}. The fractions must add up to less than 1.")
    return tuple(holdout.items())


def position_of(file_name: str) -> float:
    r"""A number in [0, 1) for an image, by its file name alone.

    >>> round(position_of("dog.jpg"), 3), position_of("caf\u00e9.jpg") == position_of("cafe\u0301.jpg")
    (0.862, True)
    """
    digest = hashlib.sha256(unicodedata.normalize("NFC", file_name).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def hold_out(found: CaptionFile, holdout: Holdout, source: str) -> CaptionFile:
    """Move images without a split, or of the train split, to the held-out splits; the others without a split become train.

    Args:
        found: The captions.
        holdout: Each split and its fraction. In their order they take the positions (:func:`position_of`) from 0 on.
        source: The captions' name, for messages.

    Raises:
        InputError: The captions have a split of such a name, or no train split; or a split would get no image.
    """
    names = [name for name in found.splits if name is not None]
    if own := [name for name, _ in holdout if name in names]:
        raise InputError(f"{source}: has a split {own[0]} of its own ({', '.join(names)}). Omit `holdout`, or hold out a split of another name.")
    if names and not {None, DEFAULT_SPLIT} & found.splits.keys():
        raise InputError(f"{source}: has no split {DEFAULT_SPLIT} to take images from, only {', '.join(names)}. Omit `holdout`.")
    splits: dict[str | None, list[CaptionedImage]] = {name if name is not None else DEFAULT_SPLIT: [] for name in found.splits}
    for name in (DEFAULT_SPLIT, *dict(holdout)):
        splits.setdefault(name, [])
    for split, records in found.splits.items():
        for record in records:
            splits[_split_of(record.file_name, holdout) if split is None or split == DEFAULT_SPLIT else split].append(record)
    images = sum(map(len, (splits[name] for name in (DEFAULT_SPLIT, *dict(holdout)))))
    for name in (DEFAULT_SPLIT, *dict(holdout)):
        if images and not splits[name]:
            raise InputError(
                f"{source}: `holdout` gives split {name} none of the {images} images (a hash of the file name chooses them). "
                f"Choose a {'smaller' if name == DEFAULT_SPLIT else 'larger'} fraction."
            )
    return CaptionFile(splits=splits, rejects=found.rejects, listed=found.listed)


def _split_of(file_name: str, holdout: Holdout) -> str:
    position = position_of(file_name)
    end = 0.0
    for name, fraction in holdout:
        end += fraction
        if position < end:
            return name
    return DEFAULT_SPLIT
