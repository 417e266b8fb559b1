"""Captions files of any format -> the records and rejects of each split."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.captions.encodings import check_encoding
from pipeline.captions.formats import CaptionInput, format_of
from pipeline.captions.holdout import Holdout, hold_out
from pipeline.captions.image_tables import holds_images, read_image_tables
from pipeline.captions.locations import expanded
from pipeline.captions.merge import DEFAULT_SPLIT, merge
from pipeline.captions.records import CaptionedImage, CaptionFile, no_garbage_collection
from pipeline.captions.tables import read_table_file
from pipeline.captions.text_files import read_split_list
from shards.errors import InputError
from shards.layout import check_split_name
from shards.paths import Location, is_absolute, is_url, relative_name, same_name
from shards.rejects import Reject


@dataclass(frozen=True, kw_only=True)
class CaptionSource:
    """Where captions come from.

    Attributes:
        paths: Captions files or folders of any format, in order; patterns; and URLs of Parquet and Arrow files.
        split_lists: (split, file with the names of its images), for captions that name no splits.
        holdout: Splits to take from images that have none, as in :func:`pipeline.captions.holdout.hold_out`.
        columns: For tables: ``image``, ``caption``, ``split`` -> the column's name.
        restval: As in :func:`pipeline.captions.karpathy.karpathy_file`.
        encoding: Of text files, UTF-8 by default.
        image_files: Where the images are, if they are files: absolute names below it become relative, and tables that hold images are read
            for names only.

    Raises:
        InputError: There is no such encoding.
    """

    paths: tuple[Location, ...]
    split_lists: tuple[tuple[str, Path], ...] = ()
    holdout: Holdout = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    restval: bool = True
    encoding: str | None = None
    image_files: Location | None = None

    def __post_init__(self) -> None:
        if self.encoding is not None:
            check_encoding(self.encoding)

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
    """The splits of captions, in the order in which the captions name them.

    Args:
        found: The captions.
        source: For messages.
        split: If the captions name splits, the one to return (by default all); else the name to give to the only one (by default ``train``).

    Raises:
        InputError: The captions name splits, and not this one.
    """
    names = [name for name in found.splits if name is not None]
    unnamed_rejects = found.rejects.get(None, [])
    if not names:
        only = SplitCaptions(records=tuple(found.splits.get(None, ())), rejects=tuple(unnamed_rejects))
        return {check_split_name(split or DEFAULT_SPLIT): only}
    if split is not None and split not in names:
        raise InputError(f"{source}: there is no split {split!r}. Choose another `split` of {', '.join(names)}, or omit it to take all of them.")
    # Rejects that belong to no split are reported with the first one
    rejects = {name: [*(unnamed_rejects if name == names[0] else ()), *found.rejects.get(name, ())] for name in names}
    chosen = names if split is None else [split]
    return {name: SplitCaptions(records=tuple(found.splits[name]), rejects=tuple(rejects[name])) for name in chosen}


def first_captions(splits: Iterable[SplitCaptions]) -> list[str]:
    """The first caption of each image, as a sample of the captions."""
    return [record.captions[0].text for split in splits for record in split.records]


def read_captions(source: CaptionSource) -> CaptionFile:
    """Read the captions files, merge several into one, and assign images to splits by the split lists and the holdout.

    Raises:
        InputError: A file is missing, of no known format, damaged or too large; names it, and the line if there is one.
    """
    with no_garbage_collection():
        files: list[CaptionFile] = []
        tables: list[Location] = []
        position = 0
        for location in expanded(source.paths):
            file = None if is_url(location) else _input(source, Path(location))
            if source.image_files is None and (file is None or file.is_columnar) and holds_images(location, source.columns):
                position = position if tables else len(files)
                tables.append(location)
            else:
                read = read_table_file(location, source.columns) if file is None else format_of(file).read(file)
                files.append(_relative(read, source.image_files))
        if tables:  # one table in several files, such as train-00000-of-00009.parquet
            files.insert(position, read_image_tables(tables, source.columns, name_splits=not source.split_lists))
        found = files[0] if len(files) == 1 else merge(files)
        found = _assign_splits(found, source) if source.split_lists else found
        return hold_out(found, source.holdout, str(source)) if source.holdout else found


def _input(source: CaptionSource, path: Path) -> CaptionInput:
    return CaptionInput(path=path, columns=source.columns, restval=source.restval, encoding=source.encoding)


def _relative(found: CaptionFile, images: Location | None) -> CaptionFile:
    """Absolute file names below the images' folder become relative to it; other absolute names are rejects."""
    splits: dict[str | None, list[CaptionedImage]] = {}
    rejects = {split: list(of_split) for split, of_split in found.rejects.items()}
    for split, records in found.splits.items():
        splits[split] = []
        for record in records:
            name = record.file_name
            if not is_absolute(name):
                splits[split].append(record)
            elif images is not None and (relative := relative_name(name, images)) is not None:
                splits[split].append(replace(record, file_name=relative))
            else:
                message = f"the file name is absolute, and not below the images' folder{'' if images is None else f' {images}'}"
                rejects.setdefault(split, []).append(Reject(file=name, reason="path_escape", message=message))
    return CaptionFile(splits=splits, rejects=rejects, listed=found.listed)


def _assign_splits(found: CaptionFile, source: CaptionSource) -> CaptionFile:
    """Put each image into the split whose list has its file name, with or without its extension."""
    if any(name is not None for name in found.splits):
        names = ", ".join(name for name in found.splits if name is not None)
        raise InputError(f"{source}: names its splits itself ({names}): omit `split_list`.")
    split_of_name = _listed_splits(source.split_lists, source.encoding)
    splits: dict[str | None, list[CaptionedImage]] = {split: [] for split, _ in source.split_lists}
    rejects: dict[str | None, list[Reject]] = {}
    found_names = set()

    def split_of(file_name: str) -> str | None:
        file_name = same_name(file_name)
        name = file_name if file_name in split_of_name else file_name.rpartition(".")[0]
        found_names.add(name)
        return split_of_name.get(name)

    for reject in found.rejects.get(None, ()):
        rejects.setdefault(split_of(reject.file), []).append(reject)
    for record in found.splits.get(None, ()):
        split = split_of(record.file_name)
        if split is not None:
            splits[split].append(record)
        else:
            rejects.setdefault(None, []).append(Reject(file=record.file_name, reason="in_no_split", message="it is in no split list"))
    for name, split in split_of_name.items():
        if name not in found_names:
            rejects.setdefault(split, []).append(Reject(file=name, reason="no_captions", message="it is in a split list, but has no captions"))
    return CaptionFile(splits=splits, rejects=rejects, listed=found.listed)


def _listed_splits(split_lists: Iterable[tuple[str, Path]], encoding: str | None) -> dict[str, str]:
    """The split of each name in the lists.

    Raises:
        InputError: A name is in two lists.
    """
    split_of_name: dict[str, str] = {}
    for split, path in split_lists:
        for name in map(same_name, read_split_list(path, encoding)):
            if split_of_name.setdefault(name, split) != split:
                raise InputError(
                    f"{path}: {name} is in split {split_of_name[name]} by an earlier `split_list`. An image has one split: remove it from one of "
                    "the lists."
                )
    return split_of_name
