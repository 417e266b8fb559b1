"""Captions in plain text: token files of Flickr8k and Flickr30k, folders of images with ``.txt`` files, and lists of a split's images."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.captions.encodings import decoded_lines
from pipeline.captions.formats import CaptionFormat
from pipeline.captions.records import CaptionFile, CaptionRow, file_of_rows
from shards.errors import InputError
from shards.paths import IMAGE_SUFFIXES, same_name
from shards.rejects import Reject

MAX_LINE_CHARACTERS = 16 << 20
MAX_FILE_BYTES = 2 << 30
# For the .txt file of one image
MAX_CAPTIONS_BYTES = 1 << 20
TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)")
EMPTY_TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#\d+")


def text_lines(path: Path, *, encoding: str | None = None, at_most: int = MAX_FILE_BYTES) -> Iterator[str]:
    """The lines of a text file with their line ends, without a byte order mark.

    Args:
        encoding: UTF-8 by default.
        at_most: How many bytes the file may have.

    Raises:
        InputError: The file is missing or too large, or a line is too long or cannot be decoded; names the line.
    """
    try:
        size = path.stat().st_size
        if size > at_most:
            raise InputError(f"{path}: has {size} bytes, more than the limit for a captions file ({at_most}).")
        yield from decoded_lines(path, encoding, MAX_LINE_CHARACTERS)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except OSError as problem:
        raise InputError(f"{path}: cannot be read: {problem.strerror}.") from None


def read_tokens(path: Path, encoding: str | None = None) -> CaptionFile:
    """Read a token file of Flickr8k or Flickr30k (Hodosh et al. 2013, Young et al. 2014): each line is ``name.jpg#0``, a tab and a caption.

    Raises:
        InputError: As :func:`text_lines`.
    """
    return file_of_rows(_token_rows(path, encoding))


def _token_rows(path: Path, encoding: str | None) -> Iterator[CaptionRow | Reject]:
    for number, line in enumerate(text_lines(path, encoding=encoding), 1):
        text = line.strip()
        if match := TOKEN_LINE.fullmatch(text):
            yield CaptionRow(file_name=match["image"], captions=(match["caption"].strip(),))
        elif match := EMPTY_TOKEN_LINE.fullmatch(text):  # the caption was white space
            yield CaptionRow(file_name=match["image"], captions=("",))
        elif text:
            message = f"{path.name}: line {number} is not NAME#NUMBER, a tab and a caption"
            yield Reject(file=f"line {number}", reason="malformed_row", message=message)


def read_split_list(path: Path, encoding: str | None = None) -> list[str]:
    """Read a split list: the name of an image on each line, as in Flickr8k's ``Flickr_8k.trainImages.txt``.

    Raises:
        InputError: As :func:`text_lines`, or it lists nothing.
    """
    names = [name for line in text_lines(path, encoding=encoding) if (name := line.strip())]
    if not names:
        raise InputError(f"{path}: lists no image. A split list has the name of an image on each line.")
    return names


def read_folder(path: Path, encoding: str | None = None) -> CaptionFile:
    """Read a folder of images, each with a text file of the same name that has a caption on each line; folders in it too.

    File names are relative to the folder and sorted by their parts. Rejected are hidden images and text files, and hidden folders as a whole:
    their names begin with a dot.

    Raises:
        InputError: It has no text file; or as :func:`text_lines`.
    """
    files: dict[Path, Path] = {}
    hidden: list[Path] = []
    for parent, folders, names in os.walk(path):
        below = Path(parent).relative_to(path)
        hidden += [below / name for name in folders if name.startswith(".")]
        hidden += [below / name for name in names if name.startswith(".") and Path(name).suffix.lower() in (*IMAGE_SUFFIXES, ".txt")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        files |= {below / name: Path(parent, name) for name in names if not name.startswith(".")}
    if not any(name.suffix == ".txt" for name in files):
        raise InputError(
            f"{path}: is a folder without .txt files. A folder of captions has a .txt file for each image, named like the image, with a caption "
            "on each line."
        )
    return file_of_rows(_folder_rows(files, hidden, encoding))


def _folder_rows(files: dict[Path, Path], hidden: Iterable[Path], encoding: str | None) -> Iterator[CaptionRow | Reject]:
    text_names = {same_name(name.as_posix()): name for name in files if name.suffix == ".txt"}
    described = set()
    for name in sorted(files):
        if name.suffix.lower() in IMAGE_SUFFIXES:
            text_name = text_names.get(same_name(name.with_suffix(".txt").as_posix()))
            described.add(text_name)
            lines = text_lines(files[text_name], encoding=encoding, at_most=MAX_CAPTIONS_BYTES) if text_name is not None else ()
            yield CaptionRow(file_name=name.as_posix(), captions=tuple(text for line in lines if (text := line.strip())))
    for name in sorted(files):
        if name.suffix == ".txt" and name not in described:
            message = f"{name.as_posix()}: there is no image of the same name in its folder"
            yield Reject(file=name.as_posix(), reason="caption_without_image", message=message)
    for name in sorted(hidden):
        yield Reject(file=name.as_posix(), reason="hidden_file", message=f"{name.as_posix()}: hidden files and folders are not used")


TOKEN_FILE = CaptionFormat(
    description="lines of NAME#NUMBER, a tab and a caption",
    matches=lambda file: not file.is_json and TOKEN_LINE.fullmatch(file.first_line) is not None,
    read=lambda file: read_tokens(file.path, file.encoding),
)
FOLDER = CaptionFormat(
    description="images, each with a .txt file of the same name",
    matches=lambda file: file.path.is_dir(),
    read=lambda file: read_folder(file.path, file.encoding),
)
