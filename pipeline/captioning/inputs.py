"""What a user names -> photographs: files, folders, patterns, URLs, and a list of all of these on standard input."""

import glob
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.images.decode import ImageError, read_image_file
from shards.errors import DamageError, InputError, ResourceError
from shards.fetch import download
from shards.paths import ENDINGS

MAX_DOWNLOAD_BYTES = 64 << 20
STANDARD_INPUT = "-"


def named_images(arguments: Iterable[str], lines: Iterable[str]) -> list[str]:
    """Files and URLs, in the order of the arguments; what a folder or a pattern gives is sorted.

    Args:
        arguments: Each a file, a folder (searched with all folders below it), a pattern (``holiday/**/*.jpg``), a URL, or ``-`` for
            all of ``lines``. A file that is not there stays in the list: whoever reads it says so.
        lines: Of standard input: a file, folder, pattern or URL each; empty ones are passed over.

    Raises:
        InputError: A folder or a pattern that holds no photograph, or nothing at all.
    """
    found: list[str] = []
    for argument in arguments:
        for name in (line.rstrip("\r\n") for line in lines) if argument == STANDARD_INPUT else (argument,):
            if name:
                found.extend(_expanded(name))
    if not found:
        raise InputError("No photographs were named: give files, folders, patterns or URLs, or - and a list on standard input.")
    return found


def _expanded(name: str) -> Iterator[str]:
    path = Path(name)
    if "://" in name or _is(path, stat.S_ISREG):
        yield name
        return
    if _is(path, stat.S_ISDIR):
        found, endings = _images_in(path), ", ".join(sorted(ENDINGS))
        if not found:
            raise InputError(f"{name}: there is no photograph in this folder or below it (files that end in {endings}).")
        yield from found
    elif glob.has_magic(name):
        try:
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        except ValueError:  # NUL, which no file's name holds
            matches = []
        if not matches:
            raise InputError(f"{name}: no file matches this pattern.")
        # A pattern may match a folder and what is in it
        yield from dict.fromkeys(each for match in matches for each in (_images_in(Path(match)) if Path(match).is_dir() else [match]))
    else:
        yield name


def _is(path: Path, kind: Callable[[int], bool]) -> bool:
    try:
        return kind(path.stat().st_mode)
    except (OSError, ValueError):  # not there, or a name that no file can have
        return False


def _images_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())


def image_bytes(name: str) -> bytes:
    """The bytes of a file or of what a URL sends, at most :data:`MAX_DOWNLOAD_BYTES` of that.

    Raises:
        ImageError: ``missing_file``, ``unreadable_file`` or ``too_large``; of a URL always ``unreadable_file``.
    """
    if "://" not in name:
        return read_image_file(Path(name))
    with tempfile.TemporaryDirectory(prefix="capstream-") as folder:
        target = Path(folder) / "photograph"
        try:
            download(name, target, at_most=MAX_DOWNLOAD_BYTES, again="")
        except (InputError, DamageError, ResourceError) as error:
            raise ImageError("unreadable_file", str(error)) from None
        return target.read_bytes()
