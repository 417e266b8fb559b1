"""Captions in plain text: token files of Flickr8k and Flickr30k, lists of a split's images, a folder of images beside ``.txt`` files."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.captions.records import CaptionFile, Row, gather
from shards.errors import InputError
from shards.paths import IMAGE_SUFFIXES
from shards.rejects import Reject

MAX_LINE_BYTES = 16 << 20
MAX_FILE_BYTES = 2 << 30
# Of a .txt file beside an image.
MAX_CAPTIONS_BYTES = 1 << 20
TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)")
BOM = "\ufeff"


def text_lines(path: Path, *, at_most: int = MAX_FILE_BYTES) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, without a byte order mark.

    Raises:
        InputError: The file is missing or too large, or a line is too long or not UTF-8; names the line.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > at_most:
                raise InputError(f"{path}: has {os.fstat(file.fileno()).st_size} bytes, more than a file of captions may have ({at_most}).")
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"{path}: line {number} has more than {MAX_LINE_BYTES} bytes. Is it a file of captions?")
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as problem:
                    raise InputError(
                        f"{path}: line {number} is not UTF-8 (byte 0x{line[problem.start]:02x}). Save the file as UTF-8, for example with: "
                        f"iconv -f WINDOWS-1252 -t UTF-8"
                    ) from None
                yield text.removeprefix(BOM) if number == 1 else text
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}.") from None


def read_tokens(path: Path) -> CaptionFile:
    """A token file as Flickr8k and Flickr30k have it (Hodosh et al. 2013, Young et al. 2014): ``name.jpg#0``, a tab, a caption on each line.

    Raises:
        InputError: As :func:`text_lines`.
    """
    return gather(_token_rows(path))


def _token_rows(path: Path) -> Iterator[Row | Reject]:
    for number, line in enumerate(text_lines(path), 1):
        text = line.strip()
        match = TOKEN_LINE.fullmatch(text)
        if match:
            yield Row(file_name=match["image"], captions=(match["caption"].strip(),))
        elif re.fullmatch(r"[^\t]+#\d+", text):  # the caption was white space
            yield Row(file_name=text.rpartition("#")[0], captions=("",))
        elif text:
            yield Reject(file=f"line {number}", reason="malformed_row", message=f"{path.name}: line {number} is not NAME#NUMBER, a tab, a caption")


def read_split_list(path: Path) -> list[str]:
    """A file with the name of an image on each line, as Flickr8k's ``Flickr_8k.trainImages.txt``.

    Raises:
        InputError: As :func:`text_lines`, or it lists nothing.
    """
    names = [name for line in text_lines(path) if (name := line.strip())]
    if not names:
        raise InputError(f"{path}: lists no image. A split list has the name of an image on each line.")
    return names


def read_folder(path: Path) -> CaptionFile:
    """A folder, with folders in it perhaps: beside each image a text file of its name with a caption on each line.

    File names are relative to the folder, and in the order of their parts. Names that begin with a dot are passed over.

    Raises:
        InputError: It holds no text file; or as :func:`text_lines`.
    """
    files: dict[Path, Path] = {}
    for parent, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files |= {(place := Path(parent, name)).relative_to(path): place for name in names if not name.startswith(".")}
    if not any(name.suffix == ".txt" for name in files):
        raise InputError(
            f"{path}: is a folder without .txt files. A folder of captions has beside each image a .txt file with a caption on each line."
        )
    return gather(_folder_rows(files))


def _folder_rows(files: dict[Path, Path]) -> Iterator[Row | Reject]:
    described = set()
    for name in sorted(files):
        if name.suffix.lower() in IMAGE_SUFFIXES:
            beside = name.with_suffix(".txt")
            described.add(beside)
            lines = text_lines(files[beside], at_most=MAX_CAPTIONS_BYTES) if beside in files else ()
            yield Row(file_name=name.as_posix(), captions=tuple(text for line in lines if (text := line.strip())))
    for name in sorted(files):
        if name.suffix == ".txt" and name not in described:
            yield Reject(file=name.as_posix(), reason="caption_without_image", message=f"{name.as_posix()}: there is no image of this name beside it")
