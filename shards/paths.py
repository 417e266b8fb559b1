"""File names, folders and URLs, before anything is read or written. The standard library alone."""

import re
import shlex
import shutil
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias

# A local path, or a URL that fsspec opens (https://..., s3://...).
Location: TypeAlias = Path | str

# File name extensions of images, in lower case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".j2k", ".heic", ".heif", ".avif")

PLAIN_NAME = re.compile(r"\w[\w.-]*")


def is_url(location: Location) -> bool:
    """Whether ``location`` is a URL and not a local path.

    >>> is_url("s3://bucket/shards"), is_url("data/shards")
    (True, False)
    """
    return isinstance(location, str) and "://" in location


def shell_quoted(location: Location) -> str:
    """A location as a shell's command line takes it, for messages that suggest a command.

    >>> shell_quoted("data/my photos"), shell_quoted("data/shards")
    ("'data/my photos'", 'data/shards')
    """
    return shlex.quote(str(location))


def same_name(file_name: str) -> str:
    """The file name in Unicode's form NFC. macOS and other systems write the same name in different forms (Unicode Standard Annex 15).

    >>> same_name("cafe\u0301.jpg") == "caf\u00e9.jpg"
    True
    """
    return file_name if file_name.isascii() else unicodedata.normalize("NFC", file_name)


def relative_name(file_name: str, folder: Location) -> str | None:
    """An absolute file name, or a URL, below a folder -> the name relative to the folder; None if it is not below it."""
    if is_url(folder):
        start = f"{str(folder).rstrip('/')}/"
        name = file_name[len(start) :] if file_name.startswith(start) else ""
        return name if name and is_inside(name) else None
    for root in (Path(folder).absolute(), Path(folder).resolve()):
        for kind in (PurePosixPath, PureWindowsPath):
            try:
                name = kind(file_name).relative_to(kind(str(root))).as_posix()
            except ValueError:
                continue
            return name if is_inside(name) else None
    return None


def is_absolute(file_name: str) -> bool:
    """Whether a file name is an absolute path, on POSIX or on Windows, or a URL."""
    return "://" in file_name or PurePosixPath(file_name).is_absolute() or PureWindowsPath(file_name).is_absolute()


def is_inside(file_name: str) -> bool:
    """Whether a relative file name stays below the folder that it is joined to, on POSIX and on Windows."""
    if PLAIN_NAME.fullmatch(file_name):
        return True
    posix, windows = PurePosixPath(file_name), PureWindowsPath(file_name)
    return not (posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts or "\0" in file_name)


def free_bytes(folder: Path) -> int:
    """Free space in bytes on the disk of ``folder``, which need not exist yet."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(existing).free
