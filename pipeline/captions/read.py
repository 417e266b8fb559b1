"""Captions in any form -> one set of records: what a file is, is seen from its content; several become one, image by image."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.captions.coco import coco_file
from pipeline.captions.karpathy import karpathy_file
from pipeline.captions.records import FORMS, Caption, CaptionedImage, CaptionFile, no_garbage_collection
from pipeline.captions.tables import delimiter_of, read_delimited, read_json_lines, read_json_list, read_parquet
from pipeline.captions.text_files import BOM, TOKEN_LINE, read_folder, read_split_list, read_tokens
from shards.errors import InputError
from shards.json_files import read_json
from shards.layout import check_split_name
from shards.rejects import Reject

DEFAULT_SPLIT = "train"
BEGINNING_BYTES = 1 << 16
# What others than UTF-8 text and Parquet begin with
MARKS = {
    b"\xff\xfe": "is UTF-16: save it as UTF-8",
    b"\xfe\xff": "is UTF-16: save it as UTF-8",
    b"\x1f\x8b": "is compressed: unpack it",
    b"PK\x03\x04": "is compressed: unpack it",
}


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """Where captions come from.

    Attributes:
        paths: Captions files or folders of any form, in order.
        split_lists: (split, file) for captions that name no splits: which images each has.
        columns: Of tables: ``image``, ``caption``, ``split`` -> the column's name.
        restval: As for :func:`pipeline.captions.karpathy.karpathy_file`.
    """

    paths: tuple[Path, ...]
    split_lists: tuple[tuple[str, Path], ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    restval: bool = True

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))


@dataclass(frozen=True, kw_only=True)
class SplitCaptions:
    """The records and rejects of one split."""

    records: tuple[CaptionedImage, ...]
    rejects: tuple[Reject, ...]


def read_splits(source: CaptionSource, split: str | None = None) -> dict[str, SplitCaptions]:
    """Read captions, split by split: :func:`read_captions`, then :func:`splits_of`.

    Raises:
        InputError: As these.
    """
    return splits_of(read_captions(source), source, split)


def splits_of(found: CaptionFile, source: CaptionSource, split: str | None = None) -> dict[str, SplitCaptions]:
    """The splits that captions name, in the order in which they name them.

    Args:
        source: For messages.
        split: Of captions that name their splits, the one that is wanted (all by default); else the name of the only one (``train``).

    Raises:
        InputError: There is no such split.
    """
    names = [name for name in found.splits if name is not None]
    if not names:
        both = SplitCaptions(records=tuple(found.splits.get(None, ())), rejects=tuple(found.rejects.get(None, ())))
        return {check_split_name(split or DEFAULT_SPLIT): both}
    if split is not None and split not in names:
        raise InputError(f"{source}: has no split {split!r} (there: {', '.join(names)}). Give another --split, or none: all are taken then.")
    # What belongs to no split is told beside the first one.
    left_out = {name: [*(found.rejects.get(None, ()) if name == names[0] else ()), *found.rejects.get(name, ())] for name in names}
    chosen = names if split is None else [split]
    return {name: SplitCaptions(records=tuple(found.splits[name]), rejects=tuple(left_out[name])) for name in chosen}


def read_captions(source: CaptionSource) -> CaptionFile:
    """Read one captions file, or several and put them together, and lay out splits by lists.

    Raises:
        InputError: A file is missing, of no known form, damaged or too large; names it, and the line where there is one.
    """
    with no_garbage_collection():
        files = [read_captions_file(path, columns=source.columns, restval=source.restval) for path in source.paths]
        found = files[0] if len(files) == 1 else merge(files)
        return _laid_out(found, source) if source.split_lists else found


def read_captions_file(path: Path, *, columns: Mapping[str, str], restval: bool) -> CaptionFile:
    """Read a captions file or folder in the form that its content shows.

    Raises:
        InputError: As :func:`read_captions`.
    """
    if path.is_dir():
        return read_folder(path)
    beginning = _beginning(path)
    if beginning.startswith(b"PAR1"):
        return read_parquet(path, columns)
    for mark, problem in MARKS.items():
        if beginning.startswith(mark):
            raise InputError(f"{path}: {problem} first.")
    text = beginning.decode("utf-8", "replace").removeprefix(BOM).lstrip()
    line = text.partition("\n")[0].rstrip("\r")
    if text.startswith(("{", "[")):
        return read_json_lines(path, columns) if _is_json_line(line) else _read_document(path, columns, restval)
    if TOKEN_LINE.fullmatch(line):
        return read_tokens(path)
    delimiter = delimiter_of(line, columns)
    if delimiter is not None:
        return read_delimited(path, delimiter, columns)
    shown = "is empty" if not text else "is no text" if b"\0" in beginning else f"begins with {line[:40]!r}"
    raise InputError(
        f"{path}: {shown}, which is no form of captions that is known. Known are: {FORMS}. "
        "If it is a table with other names, name them: --column image=NAME --column caption=NAME."
    )


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(BEGINNING_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file or folder of captions.") from None
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}.") from None


def _is_json_line(line: str) -> bool:
    """Whether a line is an object by itself, and no whole COCO or Karpathy file."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "images" not in value


def _read_document(path: Path, columns: Mapping[str, str], restval: bool) -> CaptionFile:
    content = read_json(path, what="captions file")
    if isinstance(content, list):
        return read_json_list(path, content, columns)
    if _is_karpathy(content):
        return karpathy_file(path, content, restval=restval)
    return coco_file(path, content)


def _is_karpathy(content: Any) -> bool:
    images = content.get("images") if isinstance(content, dict) and "annotations" not in content else None
    return isinstance(images, list) and any(isinstance(image, dict) and "sentences" in image for image in images)


@dataclass(kw_only=True)
class _Merged:
    """An image of several files; ``captions`` of them all."""

    image_id: int
    file_name: str
    split: str | None
    captions: list[Caption]


def merge(files: Sequence[CaptionFile]) -> CaptionFile:
    """Several files as one, in order: captions of images that have the same file name come together.

    The first one that has an id keeps it; who comes later with the same gets the smallest number that no file has. An image belongs to the
    split that is named for it; one for which none is named belongs to ``train`` where any file names splits. Rejects: of an image that an
    earlier file has, a caption that is there already, word for word, and all captions if its split is another.
    """
    image_ids = _Ids(record.image_id for file in files for records in file.splits.values() for record in records)
    caption_ids = _Ids(caption.id for file in files for records in file.splits.values() for record in records for caption in record.captions)
    merged: list[_Merged] = []
    rejects: dict[str | None, list[Reject]] = {}
    earlier: dict[str, list[_Merged]] = {}  # a file may list two images with one name: they stay two, and what comes later joins the first
    for file in files:
        of_file = []
        for split, left_out in file.rejects.items():
            rejects.setdefault(split, []).extend(left_out)
        for split, records in file.splits.items():
            for record in records:
                of_name = earlier.get(record.file_name, [])
                image = of_name[0] if of_name else None
                if image is None:
                    image = _Merged(image_id=image_ids.take(record.image_id), file_name=record.file_name, split=split, captions=[])
                    of_file.append(image)
                elif split is not None and image.split not in (None, split):
                    message = f"an earlier file has it in split {image.split}, which is kept"
                    rejects.setdefault(split, []).append(Reject(file=record.file_name, reason="other_split", message=message))
                    continue
                image.split = image.split or split
                texts = {caption.text for each in of_name for caption in each.captions}
                for caption in record.captions:
                    if caption.text in texts:
                        message = f"caption {caption.id}: an earlier file says the same"
                        rejects.setdefault(split, []).append(Reject(file=record.file_name, reason="duplicate_caption", message=message))
                    else:
                        image.captions.append(Caption(id=caption_ids.take(caption.id), text=caption.text))
        merged += of_file
        for image in of_file:
            earlier.setdefault(image.file_name, []).append(image)
    names = list(dict.fromkeys(split for file in files for split in file.splits))
    unnamed = DEFAULT_SPLIT if any(name is not None for name in names) else None
    splits: dict[str | None, list[CaptionedImage]] = {name if name is not None else unnamed: [] for name in names}
    for image in merged:
        record = CaptionedImage(image_id=image.image_id, file_name=image.file_name, captions=tuple(image.captions))
        splits[image.split if image.split is not None else unnamed].append(record)
    return CaptionFile(splits=splits, rejects=rejects, listed=())


class _Ids:
    """Numbers that things have, each given out once."""

    def __init__(self, wanted: Iterable[int]) -> None:
        known = set(wanted)
        self._free = (number for number in itertools.count() if number not in known)
        self._given: set[int] = set()

    def take(self, wanted: int) -> int:
        """``wanted``, or the next free number if it was given out before."""
        number = wanted if wanted not in self._given else next(self._free)
        self._given.add(number)
        return number


def _laid_out(found: CaptionFile, source: CaptionSource) -> CaptionFile:
    """Images that belong to no split, in the splits whose list has their file name, with its ending or without."""
    if any(name is not None for name in found.splits):
        names = ", ".join(name for name in found.splits if name is not None)
        raise InputError(f"{source}: names its splits itself ({names}): leave out --split-list.")
    owner: dict[str, str] = {}
    for split, path in source.split_lists:
        for name in read_split_list(path):
            if owner.setdefault(name, split) != split:
                raise InputError(
                    f"{path}: {name} is in split {owner[name]} by an earlier --split-list. An image has one split: take it out of one list."
                )
    splits: dict[str | None, list[CaptionedImage]] = {split: [] for split, _ in source.split_lists}
    rejects: dict[str | None, list[Reject]] = {}
    met = set()

    def split_of(file_name: str) -> str | None:
        name = file_name if file_name in owner else file_name.rpartition(".")[0]
        met.add(name)
        return owner.get(name)

    for reject in found.rejects.get(None, ()):
        rejects.setdefault(split_of(reject.file), []).append(reject)
    for record in found.splits.get(None, ()):
        split_there = split_of(record.file_name)
        if split_there is not None:
            splits[split_there].append(record)
        else:
            rejects.setdefault(None, []).append(Reject(file=record.file_name, reason="in_no_split", message="no --split-list has it"))
    for name, listed_in in owner.items():
        if name not in met:
            rejects.setdefault(listed_in, []).append(Reject(file=name, reason="no_captions", message="a --split-list has it, and no captions file"))
    return CaptionFile(splits=splits, rejects=rejects, listed=found.listed)
