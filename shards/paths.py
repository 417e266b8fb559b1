"""File names, folders and URLs, before anything is read or written. The standard library alone."""

import re
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias

# A local path, or a URL that fsspec opens (https://..., s3://...).
Location: TypeAlias = Path | str

# File name extensions of images, in lower case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

PLAIN_NAME = re.compile(r"\w[\w.-]*")


def is_url(location: Location) -> bool:
    """Whether ``location`` is a URL and not a local path.

    >>> is_url("s3://bucket/shards"), is_url("data/shards")
    (True, False)
    """
    return isinstance(location, str) and "://" in location


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
