"""The images that a user names: files, folders, patterns, URLs, and a list of these on standard input."""

import glob
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.images.decode import ImageError, read_image_file
from shards.errors import DamageError, InputError, ResourceError
from shards.fetch import download
from shards.paths import IMAGE_SUFFIXES

MAX_DOWNLOAD_BYTES = 64 << 20
STANDARD_INPUT = "-"


def named_images(arguments: Iterable[str], lines: Iterable[str], report: Callable[[str], None] = lambda _: None) -> list[str]:
    """Files and URLs in the order of the arguments; those of a folder or a pattern are sorted.

    Hidden images of a folder, which begin with a dot or are in a folder that does, are left out. A pattern or a name can give them.

    Args:
        arguments: Each is a file, a folder (searched recursively), a pattern (``holiday/**/*.jpg``), a URL, or ``-`` for ``lines``. A
            missing file stays in the list, and is reported when it is read.
        lines: Lines of standard input: a file, folder, pattern or URL each; empty lines are skipped.
        report: Receives a line about hidden images, if there are any.

    Raises:
        InputError: A folder or a pattern without images, or no images at all.
    """
    found: list[str] = []
    hidden: dict[str, None] = {}
    for argument in arguments:
        for name in (line.rstrip("\r\n") for line in lines) if argument == STANDARD_INPUT else (argument,):
            if name:
                found.extend(_expanded(name, hidden))
    if hidden:
        report(f"{_counted(hidden)}.")
    if not found:
        raise InputError("No images given. Give files, folders, patterns or URLs, or - for a list on standard input.")
    return found


def _expanded(name: str, hidden: dict[str, None]) -> Iterator[str]:
    path = Path(name)
    if "://" in name or _is(path, stat.S_ISREG):
        yield name
        return
    if _is(path, stat.S_ISDIR):
        found, endings = _images_in(path, hidden), ", ".join(sorted(IMAGE_SUFFIXES))
        if not found:
            also = f" {_counted(hidden)}." if hidden else ""
            raise InputError(f"{name}: no images in this folder or below it (files that end in {endings}).{also}")
        yield from found
    elif glob.has_magic(name):
        try:
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        except ValueError:  # a NUL character
            matches = []
        if not matches:
            raise InputError(f"{name}: no file matches this pattern.")
        # A pattern may match a folder and the files in it
        yield from dict.fromkeys(each for match in matches for each in (_images_in(Path(match), hidden) if Path(match).is_dir() else [match]))
    else:
        yield name


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):  # missing, or not a valid file name
        return False


def _images_in(folder: Path, hidden: dict[str, None]) -> list[str]:
    """The images in a folder and below it, sorted; those that are hidden are added to ``hidden`` instead."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            hidden[str(path)] = None
        else:
            found.append(str(path))
    return sorted(found)


def _counted(hidden: Iterable[str]) -> str:
    first, *others = hidden
    return f"Left out {1 + len(others)} hidden images ({first}, ...)" if others else f"Left out 1 hidden image ({first})"


def image_bytes(name: str) -> bytes:
    """The bytes of a file, or of a URL's content, of which at most :data:`MAX_DOWNLOAD_BYTES` are allowed.

    Raises:
        ImageError: ``missing_file``, ``unreadable_file`` or ``too_large``; of a URL always ``unreadable_file``.
    """
    if "://" not in name:
        return read_image_file(Path(name))
    with tempfile.TemporaryDirectory(prefix="capstream-") as folder:
        target = Path(folder) / "image"
        try:
            download(name, target, max_bytes=MAX_DOWNLOAD_BYTES, retry_advice="")
        except (InputError, DamageError, ResourceError) as error:
            raise ImageError("unreadable_file", str(error)) from None
        return target.read_bytes()
