"""File names and folders, before anything is read or written there. The standard library alone."""

import re
import shutil
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias

# A local path, or the URL of a place that fsspec opens (https://..., s3://...).
Location: TypeAlias = Path | str

# File name extensions of images, in lower case.
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

PLAIN_NAME = re.compile(r"\w[\w.-]*")


def is_inside(file_name: str) -> bool:
    """Whether a relative file name stays below the folder that it is joined to, on POSIX and on Windows."""
    if PLAIN_NAME.fullmatch(file_name):
        return True
    posix, windows = PurePosixPath(file_name), PureWindowsPath(file_name)
    return not (posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts or "\0" in file_name)


def free_bytes(folder: Path) -> int:
    """What a file below ``folder`` may have, by the free space of its disk; the folder need not be there yet."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    return shutil.disk_usage(there).free
